package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
)

// The nft variant, as the lab's machines have it; Calico finds out which one the host uses.
const iptables = "/usr/sbin/xtables-nft-multi"

var (
	chainLine = regexp.MustCompile(`^:(\S+) `)
	ruleLine  = regexp.MustCompile(`^-A (\S+) (.*)`)
	hashOf    = regexp.MustCompile(`--comment "?cali:([\w-]{16})`)
)

// saved is what iptables-save says of a table: the rules of each chain, in their order.
type saved map[string][]string

// apply brings the kernel's tables to what is wanted, and touches nothing but chains and rules of Calico's name.
func apply(ctx context.Context, wanted []table) error {
	for _, t := range wanted {
		text, err := run(ctx, "", iptables, "iptables-save", "-t", t.name)
		if err != nil {
			return err
		}
		if changes := t.changes(parseSaved(text)); len(changes) > 0 {
			restore := fmt.Sprintf("*%s\n%s\nCOMMIT\n", t.name, strings.Join(changes, "\n"))
			if _, err := run(ctx, restore, iptables, "iptables-restore", "--noflush"); err != nil {
				return fmt.Errorf("%w, of:\n%s", err, restore)
			}
		}
	}
	return nil
}

func parseSaved(text string) saved {
	found := saved{}
	for line := range strings.Lines(text) {
		if match := chainLine.FindStringSubmatch(line); match != nil {
			found[match[1]] = []string{}
		} else if match := ruleLine.FindStringSubmatch(line); match != nil {
			found[match[1]] = append(found[match[1]], match[2])
		}
	}
	return found
}

// changes are lines for iptables-restore --noflush; none when all is as it has to be.
func (t table) changes(now saved) []string {
	var made, filled, kernel, emptied, removed []string
	keep := map[string]bool{}
	for _, c := range t.chains {
		keep[c.name] = true
		existing, ok := now[c.name]
		if ok && slices.Equal(hashesIn(existing), c.hashes()) {
			continue
		}
		// Naming a chain makes it, and empties it when it is there.
		made = append(made, fmt.Sprintf(":%s - [0:0]", c.name))
		for _, line := range c.lines() {
			filled = append(filled, "-A "+c.name+" "+line)
		}
	}
	// A table that nobody has used yet is not there, and neither are the kernel's chains in it.
	for _, c := range slices.Concat(t.first, t.last) {
		if _, ok := now[c.kernel()]; !ok {
			now[c.kernel()] = nil
		}
	}
	for name, rules := range now {
		switch {
		case !strings.HasPrefix(name, "cali-"):
			kernel = append(kernel, t.inKernelChain(name, rules)...)
		case !keep[name]:
			emptied = append(emptied, fmt.Sprintf(":%s - [0:0]", name))
			removed = append(removed, "-X "+name)
		}
	}
	return slices.Concat(made, emptied, filled, kernel, removed)
}

// inKernelChain puts own rules first and last in a chain of the kernel; what else is there keeps its order.
func (t table) inKernelChain(name string, rules []string) (lines []string) {
	firstHashes, first := ownRules(t.first, name)
	lastHashes, last := ownRules(t.last, name)
	hashes := hashesIn(rules)
	wanted := slices.Concat(firstHashes, lastHashes)
	own := slices.DeleteFunc(slices.Clone(hashes), func(hash string) bool { return hash == "" })
	inPlace := slices.Equal(own, wanted) &&
		slices.Equal(hashes[:len(first)], firstHashes) &&
		slices.Equal(hashes[len(hashes)-len(last):], lastHashes)
	if inPlace {
		return nil
	}
	for n, hash := range hashes {
		if hash != "" {
			lines = append(lines, "-D "+name+" "+rules[n])
		}
	}
	for n, line := range first {
		lines = append(lines, fmt.Sprintf("-I %s %d %s", name, n+1, line))
	}
	for _, line := range last {
		lines = append(lines, "-A "+name+" "+line)
	}
	return lines
}

func ownRules(chains []chain, kernel string) (hashes, lines []string) {
	for _, c := range chains {
		if c.kernel() == kernel {
			hashes, lines = append(hashes, c.hashes()...), append(lines, c.lines()...)
		}
	}
	return hashes, lines
}

// hashesIn has each rule's hash, empty for one that is not Calico's.
func hashesIn(rules []string) []string {
	hashes := make([]string, len(rules))
	for n, text := range rules {
		if match := hashOf.FindStringSubmatch(text); match != nil {
			hashes[n] = match[1]
		}
	}
	return hashes
}

// applySets makes the IP sets as wanted, name to members, and removes the policies' sets that are not; a set is
// replaced at once, so that no packet meets a half-filled one. Sets that rules still use are removed another time.
func applySets(ctx context.Context, wanted map[string][]string, now map[string][]string) error {
	var lines []string
	for name, members := range wanted {
		existing, ok := now[name]
		if ok && slices.Equal(existing, members) {
			continue
		}
		form := "hash:net family inet maxelem 1048576"
		if name == setThisHost {
			form = "hash:ip family inet maxelem 1048576"
		}
		const temporary = "cali4t0"
		lines = append(lines, "create "+name+" "+form+" -exist", "create "+temporary+" "+form)
		for _, member := range members {
			lines = append(lines, "add "+temporary+" "+member)
		}
		lines = append(lines, "swap "+name+" "+temporary, "destroy "+temporary)
	}
	if len(lines) == 0 {
		return nil
	}
	_, err := run(ctx, strings.Join(lines, "\n")+"\n", "/usr/sbin/ipset", "restore")
	return err
}

func removeSets(ctx context.Context, names []string) error {
	var lines []string
	for _, name := range names {
		lines = append(lines, "destroy "+name)
	}
	if len(lines) == 0 {
		return nil
	}
	_, err := run(ctx, strings.Join(lines, "\n")+"\n", "/usr/sbin/ipset", "restore")
	return err
}

func run(ctx context.Context, input, program string, arguments ...string) (string, error) {
	command := exec.CommandContext(ctx, program, arguments...)
	command.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin"}
	command.Stdin = strings.NewReader(input)
	var output, problem bytes.Buffer
	command.Stdout, command.Stderr = &output, &problem
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(command.Args, " "), err, strings.TrimSpace(problem.String()))
	}
	return output.String(), nil
}
