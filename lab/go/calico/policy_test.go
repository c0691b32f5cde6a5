package main

import (
	"slices"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
)

func pod(namespace, name, address, app string) core.Pod {
	return core.Pod{
		ObjectMeta: meta.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": app}},
		Spec:       core.PodSpec{Containers: []core.Container{{Ports: []core.ContainerPort{{Name: "http", ContainerPort: 8080}}}}},
		Status:     core.PodStatus{PodIP: address},
	}
}

func TestPoliciesBecomeChainsOfWhatTheyAllow(t *testing.T) {
	var from networking.NetworkPolicy
	err := yaml.Unmarshal([]byte(`
metadata: {namespace: default, name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress:
    - from:
        - podSelector: {matchLabels: {app: target}}
        - namespaceSelector: {matchLabels: {team: a}}
        - ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}
      ports: [{port: http}, {port: 53, protocol: UDP}, {port: 1000, endPort: 2000}]
`), &from)
	if err != nil {
		t.Fatal(err)
	}
	web, target := pod("default", "web", "10.42.0.1", "web"), pod("default", "target", "10.42.0.2", "target")
	other, stranger := pod("a", "other", "10.42.0.3", "other"), pod("b", "stranger", "10.42.0.4", "target")
	namespaces := []core.Namespace{
		{ObjectMeta: meta.ObjectMeta{Name: "default"}},
		{ObjectMeta: meta.ObjectMeta{Name: "a", Labels: map[string]string{"team": "a"}}},
		{ObjectMeta: meta.ObjectMeta{Name: "b"}},
	}
	pods := []core.Pod{web, target, other, stranger}
	policies, sets, err := readPolicies([]networking.NetworkPolicy{from}, []core.Pod{web}, pods, namespaces)
	if err != nil || len(policies) != 1 || len(sets) != 1 {
		t.Fatal(err, policies, sets)
	}
	var set string
	for name, members := range sets {
		set = name
		want := []string{"0.0.0.0/1", "10.0.0.0/8 nomatch", "10.42.0.2", "10.42.0.3", "128.0.0.0/1"}
		if !slices.Equal(members, want) {
			t.Errorf("members are %v", members)
		}
		if len(name) > 31 {
			t.Errorf("%s is longer than the kernel takes", name)
		}
	}
	chains := policies[0].chains()
	if len(chains) != 1 || chains[0].name != "cali-pi-knp/default/web" {
		t.Fatal(chains)
	}
	var got []string
	for _, r := range chains[0].rules {
		got = append(got, strings.TrimSpace(r.match+" "+r.action))
	}
	allow := func(protocol, ports string) string {
		return "-p " + protocol + " -m set --match-set " + set + " src -m multiport --destination-ports " + ports + " " + setAccepted
	}
	back := accepted + " --jump RETURN"
	if want := []string{allow("tcp", "8080"), back, allow("udp", "53"), back, allow("tcp", "1000:2000")}; !slices.Equal(got, want) {
		t.Errorf("rules are %q", got)
	}
	if w := workloadOf(web, policies); len(w.ingress) != 1 || len(w.egress) != 0 {
		t.Errorf("a policy of one direction leaves the other open: %+v", w)
	}
	if w := workloadOf(target, policies); len(w.ingress) != 0 {
		t.Errorf("%+v", w)
	}
}

func TestAPolicyWithoutRulesLetsNothingPass(t *testing.T) {
	from := networking.NetworkPolicy{ObjectMeta: meta.ObjectMeta{Namespace: "default", Name: "deny"}}
	from.Spec.PolicyTypes = []networking.PolicyType{networking.PolicyTypeIngress, networking.PolicyTypeEgress}
	web := pod("default", "web", "10.42.0.1", "web")
	policies, _, err := readPolicies([]networking.NetworkPolicy{from}, []core.Pod{web}, []core.Pod{web}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range policies[0].chains() {
		if len(c.rules) != 1 || c.rules[0].action != "" {
			t.Errorf("%s has %v", c.name, c.rules)
		}
	}
	to := toWorkload(workloadOf(web, policies))
	last := to.rules[len(to.rules)-1-2*2-1]
	if last.comment != "End of tier default. Drop if no policies passed packet" || last.action != "--jump DROP" {
		t.Errorf("what no policy passes is not dropped: %v", to.rules)
	}
}
