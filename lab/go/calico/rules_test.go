package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const captures = "../../../tests/fixtures/k3s-1.36.3/swapped-clean"

var hashed = regexp.MustCompile(`(?m)^(?:\[\d+:\d+\] )?-A (\S+) .*?--comment "cali:(\S{16})"`)

// Real Felix's hashes are of each rule's text and of its place: where all are the same, so are the rules and their order.
func TestChainsAreFelixs(t *testing.T) {
	for node, iface := range map[string]string{
		"agent0": "cali7df05913c2e", "agent1": "", "server0": "calicbf72fa7c99",
	} {
		want := captured(t, node)
		if iface == "" {
			for name := range want["filter"] {
				if after, ok := strings.CutPrefix(name, "cali-tw-"); ok {
					iface = after
				}
			}
		}
		in := ruleInput{ipip: true, natOutgoing: true, toHostAction: "ACCEPT", workloads: []workload{
			{iface: iface, profiles: []string{"kns.default", "ksa.default.default"}},
		}}
		for _, table := range tables(in) {
			for _, c := range slices.Concat(table.chains, table.first, table.last) {
				if got := c.hashes(); len(got) > 0 && !contains(want[table.name][c.kernel()], got) {
					t.Errorf("%s: %s: %s has %v, not %v", node, table.name, c.name, want[table.name][c.kernel()], got)
				}
			}
		}
	}
}

// contains: the kernel's FORWARD has one run of rules at its top and one at its end.
func contains(all, part []string) bool {
	return strings.Contains(strings.Join(all, " "), strings.Join(part, " "))
}

func captured(t *testing.T, node string) map[string]map[string][]string {
	text, err := os.ReadFile(filepath.Join(captures, node, "iptables-save.txt"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]map[string][]string{}
	for _, section := range strings.Split(string(text), "\n*")[1:] {
		name, rules, _ := strings.Cut(section, "\n")
		found[name] = map[string][]string{}
		for _, match := range hashed.FindAllStringSubmatch(rules, -1) {
			found[name][match[1]] = append(found[name][match[1]], match[2])
		}
	}
	return found
}
