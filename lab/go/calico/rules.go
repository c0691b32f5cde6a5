package main

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Bits of a packet's mark, as Felix takes them from its default mask.
const (
	markAccept = "0x10000"
	markPass   = "0x20000"
	allMarks   = "0x1b0000"
)

// Names of the sets that the chains below match against.
const (
	setHosts    = "cali40all-hosts-net"
	setVXLAN    = "cali40all-vxlan-net"
	setMasq     = "cali40masq-ipam-pools"
	setPools    = "cali40network-ip-pools"
	setThisHost = "cali40this-host"
	setDSCP     = "cali40dscp-src-net"
)

const (
	accepted    = "-m mark --mark " + markAccept + "/" + markAccept
	setAccepted = "--jump MARK --set-mark " + markAccept + "/" + markAccept
	clearAll    = "--jump MARK --set-mark 0/" + allMarks
	masquerade  = "--jump MASQUERADE --random-fully"
	vxlanPort   = "4789"
)

// rule has its parts as Felix writes them for iptables-restore, because its hash is of that text.
type rule struct{ comment, match, action string }

type chain struct {
	name  string
	rules []rule
}

// table is what one of iptables' tables is to have: own chains, and rules of own in the kernel's chains.
type table struct {
	name   string
	chains []chain
	first  []chain // rules to stand at the top of a kernel's chain
	last   []chain // rules to stand at its end
}

var unsafe = regexp.MustCompile(`[^\w @%+=:,./-]`)

// render gives a rule's arguments behind "-A CHAIN", with its hash as a comment.
func (r rule) render(hash string) string {
	parts := []string{hash}
	if r.comment != "" {
		parts = append(parts, fmt.Sprintf(`-m comment --comment "%s"`, unsafe.ReplaceAllString(r.comment, "_")))
	}
	for _, part := range []string{r.match, r.action} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, " ")
}

// appended marks, in the name that hashes begin with, what stands at the end whatever the mode.
const appended = "*appends*"

// kernel is the name of the chain that the rules are put into.
func (c chain) kernel() string { return strings.TrimSuffix(c.name, appended) }

// hashes tells each rule of the chain, its place in it included, as Felix's comments do.
func (c chain) hashes() []string {
	sum := sha256.Sum224([]byte(c.name))
	hashes := make([]string, len(c.rules))
	for n, r := range c.rules {
		sum = sha256.Sum224(append(sum[:], "-A "+c.name+" "+r.render("HASH")...))
		hashes[n] = base64.RawURLEncoding.EncodeToString(sum[:])[:16]
	}
	return hashes
}

// lines are the chain's rules for iptables-restore, behind "-A CHAIN" or what else puts them there.
func (c chain) lines() []string {
	lines := make([]string, len(c.rules))
	for n, hash := range c.hashes() {
		lines[n] = c.rules[n].render(fmt.Sprintf(`-m comment --comment "cali:%s"`, hash))
	}
	return lines
}

// ruleInput is what the chains follow from.
type ruleInput struct {
	ipip, vxlan  bool
	natOutgoing  bool
	toHostAction string // ACCEPT, DROP or RETURN
	appendJumps  bool
	workloads    []workload
	policies     []policy
}

// workload is a pod of this node.
type workload struct {
	iface    string
	profiles []string // kns.NAMESPACE, ksa.NAMESPACE.SERVICEACCOUNT
	ingress  []string // names of the policies that select it, by direction; none: everything is allowed
	egress   []string
}

func tables(in ruleInput) []table {
	tables := []table{mangle(), raw(), filter(in), nat(in)}
	if in.appendJumps {
		for n := range tables {
			tables[n].last = append(tables[n].first, tables[n].last...)
			tables[n].first = nil
		}
	}
	return tables
}

func jumps(kernel ...string) []chain {
	chains := make([]chain, len(kernel))
	for n, name := range kernel {
		chains[n] = chain{name, []rule{{"", "", "--jump cali-" + name}}}
	}
	return chains
}

func filter(in ruleInput) table {
	names := slices.Sorted(maps.Keys(profiles(in.workloads)))
	chains := []chain{
		{"cali-FORWARD", []rule{
			{"", "", "--jump MARK --set-mark 0/0x1a0000"},
			{"", "-m mark --mark 0/" + markAccept, "--jump cali-from-hep-forward"},
			{"", "--in-interface cali+", "--jump cali-from-wl-dispatch"},
			{"", "--out-interface cali+", "--jump cali-to-wl-dispatch"},
			{"", "", "--jump cali-to-hep-forward"},
			{"", "", "--jump cali-cidr-block"},
		}},
		{"cali-INPUT", input(in)},
		{"cali-OUTPUT", output(in)},
		{"cali-wl-to-host", []rule{
			{"", "", "--jump cali-from-wl-dispatch"},
			{"Configured DefaultEndpointToHostAction", "", "--jump " + in.toHostAction},
		}},
		{"cali-cidr-block", nil}, {"cali-from-hep-forward", nil}, {"cali-from-host-endpoint", nil},
		{"cali-to-hep-forward", nil}, {"cali-to-host-endpoint", nil},
	}
	for _, name := range names {
		chains = append(chains, profileChain("cali-pri-", name, "ingress"), profileChain("cali-pro-", name, "egress"))
	}
	chains = append(chains, dispatch("from", "fw", "--in-interface", in.workloads), dispatch("to", "tw", "--out-interface", in.workloads))
	for _, w := range in.workloads {
		chains = append(chains, fromWorkload(w), toWorkload(w))
	}
	for _, p := range in.policies {
		chains = append(chains, p.chains()...)
	}
	return table{
		name:   "filter",
		chains: chains,
		first:  jumps("INPUT", "FORWARD", "OUTPUT"),
		last: []chain{{"FORWARD" + appended, []rule{
			{"Policy explicitly accepted packet.", accepted, "--jump ACCEPT"},
			{"", "", setAccepted},
		}}},
	}
}

func input(in ruleInput) (rules []rule) {
	const local = " -m addrtype --dst-type LOCAL"
	if in.ipip {
		rules = append(rules,
			rule{"Allow IPIP packets from Calico hosts", "-p 4 -m set --match-set " + setHosts + " src" + local, "--jump ACCEPT"},
			rule{"Drop IPIP packets from non-Calico hosts", "-p 4", "--jump DROP"})
	}
	if in.vxlan {
		port := "-p 17 -m multiport --destination-ports " + vxlanPort
		rules = append(rules,
			rule{"Allow IPv4 VXLAN packets from allowed hosts", port + " -m set --match-set " + setVXLAN + " src" + local, "--jump ACCEPT"},
			rule{"Drop IPv4 VXLAN packets from non-allowed hosts", port + local, "--jump DROP"})
	}
	return append(rules,
		rule{"", "--in-interface cali+", "--goto cali-wl-to-host"},
		rule{"", accepted, "--jump ACCEPT"},
		rule{"", "", clearAll},
		rule{"", "", "--jump cali-from-host-endpoint"},
		rule{"Host endpoint policy accepted packet.", accepted, "--jump ACCEPT"})
}

func output(in ruleInput) []rule {
	const local = " -m addrtype --src-type LOCAL"
	rules := []rule{
		{"", accepted, "--jump ACCEPT"},
		{"", "--out-interface cali+", "--jump RETURN"},
	}
	if in.ipip {
		match := "-p 4 -m set --match-set " + setHosts + " dst" + local
		rules = append(rules, rule{"Allow IPIP packets to other Calico hosts", match, "--jump ACCEPT"})
	}
	if in.vxlan {
		match := "-p 17 -m multiport --destination-ports " + vxlanPort + local + " -m set --match-set " + setVXLAN + " dst"
		rules = append(rules, rule{"Allow IPv4 VXLAN packets to other allowed hosts", match, "--jump ACCEPT"})
	}
	return append(rules,
		rule{"", "", clearAll},
		rule{"", "-m conntrack ! --ctstate DNAT", "--jump cali-to-host-endpoint"},
		rule{"Host endpoint policy accepted packet.", accepted, "--jump ACCEPT"})
}

func dispatch(direction, prefix, side string, workloads []workload) chain {
	rules := make([]rule, 0, len(workloads)+1)
	for _, w := range workloads {
		rules = append(rules, rule{"", side + " " + w.iface, "--goto cali-" + prefix + "-" + w.iface})
	}
	return chain{"cali-" + direction + "-wl-dispatch", append(rules, rule{"Unknown interface", "", "--jump DROP"})}
}

func fromWorkload(w workload) chain {
	rules := append(endpointStart(),
		rule{"Drop VXLAN encapped packets originating in workloads", "-p 17 -m multiport --destination-ports " + vxlanPort, "--jump DROP"},
		rule{"Drop IPinIP encapped packets originating in workloads", "-p 4", "--jump DROP"})
	return chain{"cali-fw-" + w.iface, append(rules, endpointEnd("cali-po-", w.egress, "cali-pro-", w.profiles)...)}
}

func toWorkload(w workload) chain {
	return chain{"cali-tw-" + w.iface, append(endpointStart(), endpointEnd("cali-pi-", w.ingress, "cali-pri-", w.profiles)...)}
}

func endpointStart() []rule {
	return []rule{
		{"", "-m conntrack --ctstate RELATED,ESTABLISHED", "--jump ACCEPT"},
		{"", "-m conntrack --ctstate INVALID", "--jump DROP"},
		{"", "", "--jump MARK --set-mark 0/0x30000"},
	}
}

// endpointEnd is what decides over a new connection: the policies in that direction when there are any, then the profiles.
func endpointEnd(policyPrefix string, policies []string, profilePrefix string, profiles []string) (rules []rule) {
	const undecided = "-m mark --mark 0/" + markPass
	if len(policies) > 0 {
		rules = append(rules, rule{"Start of tier default", "", "--jump MARK --set-mark 0/" + markPass})
		for _, name := range policies {
			rules = append(rules,
				rule{"", undecided, "--jump " + chainName(policyPrefix, name)},
				rule{"Return if policy accepted", accepted, "--jump RETURN"})
		}
		rules = append(rules, rule{"End of tier default. Drop if no policies passed packet", undecided, "--jump DROP"})
	}
	for _, name := range profiles {
		rules = append(rules,
			rule{"", "", "--jump " + chainName(profilePrefix, name)},
			rule{"Return if profile accepted", accepted, "--jump RETURN"})
	}
	return append(rules, rule{"Drop if no profiles matched", "", "--jump DROP"})
}

// profileChain: the profile of a namespace allows everything, that of a service account nothing of itself.
func profileChain(prefix, name, direction string) chain {
	only := rule{"Profile " + name + " " + direction, "", ""}
	if strings.HasPrefix(name, "kns.") {
		only.action = setAccepted
	}
	return chain{chainName(prefix, name), []rule{only}}
}

func profiles(workloads []workload) map[string]bool {
	names := map[string]bool{}
	for _, w := range workloads {
		for _, name := range w.profiles {
			names[name] = true
		}
	}
	return names
}

// chainName keeps within the kernel's 28 characters: what is longer is told by a hash.
func chainName(prefix, name string) string {
	const longest = 28
	if len(prefix)+len(name) < longest || len(prefix)+len(name) == longest && name[0] != '_' {
		return prefix + name
	}
	sum := sha256.Sum256([]byte(name))
	return prefix + "_" + base64.RawURLEncoding.EncodeToString(sum[:])[:longest-1-len(prefix)]
}

func nat(in ruleInput) table {
	outgoing := chain{name: "cali-nat-outgoing"}
	if in.natOutgoing {
		match := "-m set --match-set " + setMasq + " src -m set ! --match-set " + setPools + " dst"
		outgoing.rules = []rule{{"", match, masquerade}}
	}
	post := chain{"cali-POSTROUTING", []rule{{"", "", "--jump cali-fip-snat"}, {"", "", "--jump cali-nat-outgoing"}}}
	for _, tunnel := range tunnels(in) {
		match := "--out-interface " + tunnel + " -m addrtype ! --src-type LOCAL --limit-iface-out -m addrtype --src-type LOCAL"
		post.rules = append(post.rules, rule{"", match, masquerade})
	}
	dnat := []rule{{"", "", "--jump cali-fip-dnat"}}
	return table{
		name: "nat",
		chains: []chain{
			{"cali-PREROUTING", dnat}, {"cali-OUTPUT", dnat}, post, outgoing, {"cali-fip-dnat", nil}, {"cali-fip-snat", nil},
		},
		first: jumps("PREROUTING", "OUTPUT"),
		// Behind kube-proxy's, so that a NodePort's masquerade comes before one for leaving the pools.
		last: []chain{{"POSTROUTING" + appended, []rule{{"", "", "--jump cali-POSTROUTING"}}}},
	}
}

func tunnels(in ruleInput) (names []string) {
	if in.ipip {
		names = append(names, ipipDevice)
	}
	if in.vxlan {
		names = append(names, vxlanDevice)
	}
	return names
}

func mangle() table {
	const hostEndpoint = "Host endpoint policy accepted packet."
	return table{
		name: "mangle",
		chains: []chain{
			{"cali-PREROUTING", []rule{
				{"", "-m conntrack --ctstate RELATED,ESTABLISHED", "--jump ACCEPT"},
				{"", accepted, "--jump ACCEPT"},
				{"", "", "--jump cali-from-host-endpoint"},
				{hostEndpoint, accepted, "--jump ACCEPT"},
			}},
			{"cali-POSTROUTING", []rule{
				{"set dscp for traffic leaving cluster.", "-m set --match-set " + setDSCP + " src -m set ! --match-set " + setPools +
					" dst -m set ! --match-set " + setThisHost + " dst", "--jump cali-egress-dscp"},
				{"", accepted, "--jump RETURN"},
				{"", "", clearAll},
				{"", "-m conntrack --ctstate DNAT", "--jump cali-to-host-endpoint"},
				{hostEndpoint, accepted, "--jump RETURN"},
			}},
			{"cali-egress-dscp", nil}, {"cali-from-host-endpoint", nil}, {"cali-to-host-endpoint", nil},
		},
		first: jumps("PREROUTING", "POSTROUTING"),
	}
}

func raw() table {
	const workload = "0x80000/0x80000"
	return table{
		name: "raw",
		chains: []chain{
			{"cali-PREROUTING", []rule{
				{"", "", clearAll},
				{"", "--in-interface cali+", "--jump MARK --set-mark " + workload},
				{"", "-m mark --mark " + workload, "--jump cali-rpf-skip"},
				{"", "-m mark --mark " + workload + " -m rpfilter --invert --validmark", "--jump DROP"},
				{"", "-m mark --mark 0/0x80000", "--jump cali-from-host-endpoint"},
				{"", accepted, "--jump ACCEPT"},
			}},
			{"cali-OUTPUT", []rule{
				{"", "", clearAll},
				{"", "", "--jump cali-to-host-endpoint"},
				{"", accepted, "--jump ACCEPT"},
			}},
			{"cali-from-host-endpoint", nil}, {"cali-rpf-skip", nil}, {"cali-to-host-endpoint", nil},
		},
		first: jumps("PREROUTING", "OUTPUT"),
	}
}
