package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

func TestNodesGetTheBlocksThatCalicosIPAMGivesThem(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(captures, "server0", "k8s-blockaffinities.json"))
	if err != nil {
		t.Fatal(err)
	}
	var found struct{ Items []blockAffinity }
	if err := json.Unmarshal(text, &found); err != nil || len(found.Items) != 3 {
		t.Fatal(err, len(found.Items))
	}
	var pool ipPool
	pool.Spec.CIDR, pool.Spec.BlockSize = "10.42.128.0/17", 26
	for _, affinity := range found.Items {
		for cidr := range candidates(pool, affinity.Spec.Node) {
			if cidr.String() != affinity.Spec.CIDR {
				t.Errorf("%s: %s, and Calico gives %s", affinity.Spec.Node, cidr, affinity.Spec.CIDR)
			}
			break
		}
		if want := affinity.Labels["projectcalico.org/hostname-hash"]; hostnameHash(affinity.Spec.Node) != want {
			t.Errorf("%s: hostname-hash is not %s", affinity.Spec.Node, want)
		}
		if want := affinity.Spec.Node + "-" + dashed(affinity.Spec.CIDR); affinity.Name != want {
			t.Errorf("%s is not named %s", affinity.Name, want)
		}
	}
}

func TestAnAddressIsFreeAgainLast(t *testing.T) {
	var block ipamBlock
	block.Spec.CIDR = "10.42.128.64/30"
	block.Spec.Allocations = make([]*int, 4)
	block.Spec.Unallocated = []int{0, 1, 2, 3}
	for _, want := range []string{"10.42.128.64", "10.42.128.65", "10.42.128.66"} {
		if got, ok := block.take("of "+want, nil); !ok || got.String() != want {
			t.Fatalf("%s, not %s", got, want)
		}
	}
	if !block.free("of 10.42.128.65") || block.free("of 10.42.128.65") {
		t.Fatal("an address must be given back once")
	}
	if got, _ := block.take("next", nil); got.String() != "10.42.128.67" {
		t.Errorf("%s is given again while others are free", got)
	}
	if got, _ := block.take("last", nil); got.String() != "10.42.128.65" {
		t.Errorf("%s, and only 10.42.128.65 is free", got)
	}
	if _, ok := block.take("none", nil); ok {
		t.Error("more addresses than the block has")
	}
	if index := block.Spec.Allocations[2]; block.Spec.Attributes[*index].Handle != "of 10.42.128.66" {
		t.Error("a given address has lost its handle")
	}
}

func TestInterfacesAreNamedAsCalicoDoes(t *testing.T) {
	// Of the capture swapped-clean: pod web-nhkhv on agent0.
	if got := vethName("default", "web-nhkhv"); got != "cali7df05913c2e" {
		t.Error(got)
	}
}
