package main

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// policy is one NetworkPolicy, made ready for chains; a direction that it says nothing about is nil.
type policy struct {
	namespace, name string
	ingress, egress *[]policyRule
	selects         func(core.Pod) bool
}

// policyRule lets packets of one protocol pass, from or to the members of a set; an empty part means any.
type policyRule struct {
	protocol string
	ports    []string
	set      string
}

func (p policy) id() string { return "knp/" + p.namespace + "/" + p.name }

func (p policy) chains() (chains []chain) {
	full := "KubernetesNetworkPolicy " + p.namespace + "/" + p.name
	for _, direction := range []struct {
		prefix, word, side string
		rules              *[]policyRule
	}{{"cali-pi-", "ingress", "src", p.ingress}, {"cali-po-", "egress", "dst", p.egress}} {
		if direction.rules == nil {
			continue
		}
		var rules []rule
		for _, allowed := range *direction.rules {
			rules = append(rules,
				rule{"", allowed.match(direction.side), setAccepted},
				rule{"", accepted, "--jump RETURN"})
		}
		// Nothing follows the last return, and a chain without rules still has its comment.
		if len(rules) > 0 {
			rules = rules[:len(rules)-1]
		} else {
			rules = []rule{{}}
		}
		rules[0].comment = full + " " + direction.word
		chains = append(chains, chain{chainName(direction.prefix, p.id()), rules})
	}
	return chains
}

func (r policyRule) match(side string) string {
	var parts []string
	if r.protocol != "" {
		parts = append(parts, "-p "+r.protocol)
	}
	if r.set != "" {
		parts = append(parts, "-m set --match-set "+r.set+" "+side)
	}
	if len(r.ports) > 0 {
		parts = append(parts, "-m multiport --destination-ports "+strings.Join(r.ports, ","))
	}
	return strings.Join(parts, " ")
}

// readPolicies gives the NetworkPolicies that select a local pod, and the members of the sets that they match against.
func readPolicies(found []networking.NetworkPolicy, local, pods []core.Pod, namespaces []core.Namespace) ([]policy, map[string][]string, error) {
	var policies []policy
	sets := map[string][]string{}
	for _, from := range found {
		selector, err := meta.LabelSelectorAsSelector(&from.Spec.PodSelector)
		if err != nil {
			return nil, nil, fmt.Errorf("NetworkPolicy %s/%s: %w", from.Namespace, from.Name, err)
		}
		p := policy{namespace: from.Namespace, name: from.Name, selects: func(pod core.Pod) bool {
			return pod.Namespace == from.Namespace && selector.Matches(labels.Set(pod.Labels))
		}}
		if !slices.ContainsFunc(local, p.selects) {
			continue
		}
		var selected []core.Pod
		for _, pod := range pods {
			if p.selects(pod) {
				selected = append(selected, pod)
			}
		}
		peers := peerReader{from.Namespace, pods, namespaces, sets}
		if slices.Contains(from.Spec.PolicyTypes, networking.PolicyTypeIngress) {
			rules := []policyRule{}
			for n, r := range from.Spec.Ingress {
				set, _, err := peers.set(p.id(), "ingress", n, r.From)
				if err != nil {
					return nil, nil, err
				}
				rules = append(rules, portRules(r.Ports, set, selected)...)
			}
			p.ingress = &rules
		}
		if slices.Contains(from.Spec.PolicyTypes, networking.PolicyTypeEgress) {
			rules := []policyRule{}
			for n, r := range from.Spec.Egress {
				set, targets, err := peers.set(p.id(), "egress", n, r.To)
				if err != nil {
					return nil, nil, err
				}
				rules = append(rules, portRules(r.Ports, set, targets)...)
			}
			p.egress = &rules
		}
		policies = append(policies, p)
	}
	slices.SortFunc(policies, func(a, b policy) int { return strings.Compare(a.id(), b.id()) })
	return policies, sets, nil
}

// portRules has one rule for each protocol; a port's name is looked up in the containers of the pods that are meant.
func portRules(ports []networking.NetworkPolicyPort, set string, targets []core.Pod) (rules []policyRule) {
	if len(ports) == 0 {
		return []policyRule{{set: set}}
	}
	for _, port := range ports {
		protocol := core.ProtocolTCP
		if port.Protocol != nil {
			protocol = *port.Protocol
		}
		allowed := policyRule{protocol: strings.ToLower(string(protocol)), set: set}
		switch {
		case port.Port == nil:
		case port.Port.StrVal != "":
			if allowed.ports = namedPorts(port.Port.StrVal, protocol, targets); len(allowed.ports) == 0 {
				continue
			}
		case port.EndPort != nil:
			allowed.ports = []string{fmt.Sprintf("%d:%d", port.Port.IntVal, *port.EndPort)}
		default:
			allowed.ports = []string{strconv.Itoa(int(port.Port.IntVal))}
		}
		rules = append(rules, allowed)
	}
	return rules
}

func namedPorts(name string, protocol core.Protocol, pods []core.Pod) (numbers []string) {
	for _, pod := range pods {
		for _, container := range pod.Spec.Containers {
			for _, port := range container.Ports {
				number := strconv.Itoa(int(port.ContainerPort))
				same := port.Protocol == protocol || port.Protocol == "" && protocol == core.ProtocolTCP
				if port.Name == name && same && !slices.Contains(numbers, number) {
					numbers = append(numbers, number)
				}
			}
		}
	}
	slices.Sort(numbers)
	return numbers
}

type peerReader struct {
	namespace  string
	pods       []core.Pod
	namespaces []core.Namespace
	sets       map[string][]string
}

// set is the name of the set of all addresses that a rule's peers are, and the pods among them; no peers mean anybody.
func (r peerReader) set(policy, direction string, n int, peers []networking.NetworkPolicyPeer) (string, []core.Pod, error) {
	if len(peers) == 0 {
		return "", r.pods, nil
	}
	var members []string
	var pods []core.Pod
	for _, peer := range peers {
		if peer.IPBlock != nil {
			// A set of networks has no room for all of IPv4 in one entry.
			if peer.IPBlock.CIDR == "0.0.0.0/0" {
				members = append(members, "0.0.0.0/1", "128.0.0.0/1")
			} else {
				members = append(members, peer.IPBlock.CIDR)
			}
			for _, but := range peer.IPBlock.Except {
				members = append(members, but+" nomatch")
			}
			continue
		}
		found, err := r.matching(peer)
		if err != nil {
			return "", nil, fmt.Errorf("%s: %w", policy, err)
		}
		pods = append(pods, found...)
	}
	for _, pod := range pods {
		if address, ok := podAddress(pod); ok {
			members = append(members, address.String())
		}
	}
	sum := sha256.Sum256([]byte(fmt.Sprint(policy, direction, n)))
	name := "cali40s:" + base64.RawURLEncoding.EncodeToString(sum[:])[:31-len("cali40s:")]
	slices.Sort(members)
	r.sets[name] = slices.Compact(members)
	return name, pods, nil
}

func (r peerReader) matching(peer networking.NetworkPolicyPeer) (found []core.Pod, _ error) {
	selected := func(selector *meta.LabelSelector, values map[string]string) (bool, error) {
		if selector == nil {
			return true, nil
		}
		by, err := meta.LabelSelectorAsSelector(selector)
		return err == nil && by.Matches(labels.Set(values)), err
	}
	for _, namespace := range r.namespaces {
		if peer.NamespaceSelector == nil && namespace.Name != r.namespace {
			continue
		}
		if ok, err := selected(peer.NamespaceSelector, namespace.Labels); !ok {
			if err != nil {
				return nil, err
			}
			continue
		}
		for _, pod := range r.pods {
			if pod.Namespace != namespace.Name || pod.Spec.HostNetwork {
				continue
			}
			ok, err := selected(peer.PodSelector, pod.Labels)
			if err != nil {
				return nil, err
			}
			if ok {
				found = append(found, pod)
			}
		}
	}
	return found, nil
}

// podAddress is what the CNI plugin noted on the pod, or what the kubelet reports, of a pod that has not ended.
func podAddress(pod core.Pod) (netip.Addr, bool) {
	if pod.Spec.HostNetwork || pod.Status.Phase == core.PodSucceeded || pod.Status.Phase == core.PodFailed {
		return netip.Addr{}, false
	}
	if prefix, err := netip.ParsePrefix(pod.Annotations[annotationPodIP]); err == nil {
		return prefix.Addr(), true
	}
	address, err := netip.ParseAddr(pod.Status.PodIP)
	return address, err == nil
}
