package main

import (
	"slices"
	"strings"
	"testing"
)

var small = table{
	name:   "filter",
	chains: []chain{{"cali-FORWARD", []rule{{"", "--in-interface cali+", "--jump RETURN"}}}},
	first:  jumps("FORWARD"),
	last:   []chain{{"FORWARD" + appended, []rule{{"", accepted, "--jump ACCEPT"}}}},
}

// written is what the kernel has after the changes, as far as this table goes.
func written(t table) saved {
	now := saved{}
	for _, c := range t.chains {
		now[c.name] = c.lines()
	}
	now["FORWARD"] = slices.Concat(t.first[0].lines(), []string{"-j ufw-before-forward"}, t.last[0].lines())
	return now
}

func TestWhatIsInPlaceIsLeft(t *testing.T) {
	if changes := small.changes(written(small)); len(changes) > 0 {
		t.Errorf("%q", changes)
	}
}

func TestAnEmptyKernelGetsEverything(t *testing.T) {
	got := strings.Join(small.changes(saved{}), "\n")
	for _, want := range []string{":cali-FORWARD - ", "-A cali-FORWARD ", "-I FORWARD 1 ", "-A FORWARD "} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in:\n%s", want, got)
		}
	}
}

func TestARuleThatCameBeforeIsPassedAndNotTouched(t *testing.T) {
	now := written(small)
	now["FORWARD"] = append([]string{"-j ufw-before-forward"}, now["FORWARD"]...)
	changes := small.changes(now)
	if len(changes) == 0 {
		t.Fatal("Calico's jump is not first, and nothing is done")
	}
	for _, line := range changes {
		if strings.Contains(line, "ufw") {
			t.Errorf("%s is another's", line)
		}
	}
}

func TestAChainThatIsNoLongerWantedGoes(t *testing.T) {
	now := written(small)
	now["cali-tw-cali00000000000"] = []string{"-j DROP"}
	if changes := small.changes(now); !slices.Equal(changes, []string{":cali-tw-cali00000000000 - [0:0]", "-X cali-tw-cali00000000000"}) {
		t.Errorf("%q", changes)
	}
}

func TestOnlyTablesThatChangeAreWrittenAgain(t *testing.T) {
	other := table{name: "nat"}
	d := dataplane{tables: []table{small, other}}
	if changed := d.changed([]table{small, other}); len(changed) > 0 {
		t.Errorf("%v", changed)
	}
	more := small
	more.chains = append(slices.Clone(more.chains), chain{name: "cali-tw-cali1"})
	if changed := d.changed([]table{more, other}); len(changed) != 1 || changed[0].name != "filter" {
		t.Errorf("%v", changed)
	}
	if changed := (&dataplane{}).changed([]table{small, other}); len(changed) != 2 {
		t.Errorf("%v", changed)
	}
}
