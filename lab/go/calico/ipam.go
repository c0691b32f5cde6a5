package main

import (
	"context"
	"crypto/sha3"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/big"
	"math/rand"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	defaultBlockSize = 26
	attempts         = 20 // of what another node or plugin may have changed meanwhile
)

// ipam hands out addresses of the blocks that a node has, and claims further blocks for it.
type ipam struct {
	*cluster
	node string
}

// assign gives an address to a handle. Blocks that the node has come first, in the order of their addresses.
func (i ipam) assign(ctx context.Context, handle string, attributes map[string]string) (netip.Addr, error) {
	for range attempts {
		pools, err := i.usablePools(ctx)
		if err != nil {
			return netip.Addr{}, err
		}
		if len(pools) == 0 {
			return netip.Addr{}, fmt.Errorf("no configured Calico pools for node %s", i.node)
		}
		own, err := i.ownBlocks(ctx, pools)
		if err != nil {
			return netip.Addr{}, err
		}
		full := true
		for _, name := range own {
			address, err := i.take(ctx, name, handle, attributes)
			if err == nil && address.IsValid() {
				return address, nil
			}
			if err != nil && !errors.IsConflict(err) && !errors.IsNotFound(err) {
				return netip.Addr{}, err
			}
			full = full && err == nil
		}
		if full {
			if err := i.claim(ctx, pools); err != nil && !errors.IsAlreadyExists(err) && !errors.IsConflict(err) {
				return netip.Addr{}, err
			}
		}
	}
	return netip.Addr{}, fmt.Errorf("no address for %s: the blocks change under every attempt", handle)
}

// release gives back all addresses of a handle; none is right, too.
func (i ipam) release(ctx context.Context, handle string) error {
	name := handleName(handle)
	found, err := i.handles.get(ctx, name)
	if errors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for cidr := range found.Spec.Block {
		err := retry(func() error {
			block, err := i.blocks.get(ctx, dashed(cidr))
			if err != nil || !block.free(handle) {
				return err
			}
			_, err = i.blocks.update(ctx, block)
			return err
		})
		if err != nil && !errors.IsNotFound(err) {
			return err
		}
	}
	if err := i.handles.delete(ctx, name); !errors.IsNotFound(err) {
		return err
	}
	return nil
}

func (i ipam) usablePools(ctx context.Context) ([]ipPool, error) {
	pools, err := i.pools.list(ctx)
	return slices.DeleteFunc(pools, func(pool ipPool) bool {
		_, ipv4 := pool.prefix()
		uses := pool.Spec.AllowedUses
		return !ipv4 || pool.Spec.Disabled || len(uses) > 0 && !slices.Contains(uses, "Workload")
	}), err
}

// ownBlocks are the names of the node's blocks in these pools.
func (i ipam) ownBlocks(ctx context.Context, pools []ipPool) ([]string, error) {
	affinities, err := i.affinities.list(ctx)
	if err != nil {
		return nil, err
	}
	var cidrs []netip.Prefix
	for _, affinity := range affinities {
		cidr, err := netip.ParsePrefix(affinity.Spec.CIDR)
		inPool := func(pool ipPool) bool {
			prefix, _ := pool.prefix()
			return prefix.Contains(cidr.Addr())
		}
		if err == nil && affinity.Spec.Node == i.node && affinity.confirmed() && slices.ContainsFunc(pools, inPool) {
			cidrs = append(cidrs, cidr)
		}
	}
	slices.SortFunc(cidrs, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	names := make([]string, len(cidrs))
	for n, cidr := range cidrs {
		names[n] = dashed(cidr.String())
	}
	return names, nil
}

// take gives a free address of a block to a handle; none is valid when the block has none left.
func (i ipam) take(ctx context.Context, name, handle string, attributes map[string]string) (netip.Addr, error) {
	block, err := i.blocks.get(ctx, name)
	if err != nil {
		return netip.Addr{}, err
	}
	address, ok := block.take(handle, attributes)
	if !ok {
		return address, nil
	}
	// The handle first: an address that no handle leads to would never be given back.
	if err := i.countHandle(ctx, handle, block.Spec.CIDR); err != nil {
		return netip.Addr{}, err
	}
	_, err = i.blocks.update(ctx, block)
	return address, err
}

func (i ipam) countHandle(ctx context.Context, handle, cidr string) error {
	return retry(func() error {
		name := handleName(handle)
		found, err := i.handles.get(ctx, name)
		if errors.IsNotFound(err) {
			found.Name = name
			found.Spec.HandleID = handle
			found.Spec.Block = map[string]int{cidr: 1}
			_, err = i.handles.create(ctx, found)
			return err
		}
		if err != nil {
			return err
		}
		found.Spec.Block[cidr]++
		_, err = i.handles.update(ctx, found)
		return err
	})
}

// claim makes the next free block of the pools the node's own: an affinity that is pending, the block, then confirmed.
func (i ipam) claim(ctx context.Context, pools []ipPool) error {
	blocks, err := i.blocks.list(ctx)
	if err != nil {
		return err
	}
	owner := "host:" + i.node
	taken := map[string]bool{}
	for _, block := range blocks {
		taken[block.Spec.CIDR] = block.Spec.Affinity == nil || *block.Spec.Affinity != owner || len(block.Spec.Unallocated) == 0
	}
	for _, pool := range pools {
		for cidr := range candidates(pool, i.node) {
			if !taken[cidr.String()] {
				return i.claimBlock(ctx, cidr, owner)
			}
		}
	}
	return fmt.Errorf("no free blocks left in the pools")
}

func (i ipam) claimBlock(ctx context.Context, cidr netip.Prefix, owner string) error {
	var affinity blockAffinity
	affinity.Name = i.node + "-" + dashed(cidr.String())
	affinity.Labels = map[string]string{
		"projectcalico.org/affinity-type": "host",
		"projectcalico.org/hostname-hash": hostnameHash(i.node),
		"projectcalico.org/ip-version":    "4",
	}
	affinity.Spec.CIDR, affinity.Spec.Node = cidr.String(), i.node
	affinity.Spec.State, affinity.Spec.Type, affinity.Spec.Deleted = "pending", "host", "false"
	created, err := i.affinities.create(ctx, affinity)
	if errors.IsAlreadyExists(err) {
		created, err = i.affinities.get(ctx, affinity.Name)
	}
	if err != nil {
		return err
	}
	if _, err := i.blocks.create(ctx, newBlock(cidr, owner)); errors.IsAlreadyExists(err) {
		existing, err := i.blocks.get(ctx, dashed(cidr.String()))
		if err != nil {
			return err
		}
		if existing.Spec.Affinity == nil || *existing.Spec.Affinity != owner {
			return i.affinities.delete(ctx, affinity.Name)
		}
	} else if err != nil {
		return err
	}
	created.Spec.State = "confirmed"
	_, err = i.affinities.update(ctx, created)
	return err
}

func newBlock(cidr netip.Prefix, owner string) ipamBlock {
	now := meta.Now()
	size := 1 << (32 - cidr.Bits())
	var block ipamBlock
	block.Name = dashed(cidr.String())
	block.Spec.CIDR = cidr.String()
	block.Spec.Affinity, block.Spec.AffinityClaimTime = &owner, &now
	block.Spec.Allocations = make([]*int, size)
	block.Spec.Attributes = []allocation{}
	block.Spec.SequenceNumberForAllocation = map[string]uint64{}
	for ordinal := range size {
		block.Spec.Unallocated = append(block.Spec.Unallocated, ordinal)
	}
	return block
}

func (b *ipamBlock) take(handle string, attributes map[string]string) (netip.Addr, bool) {
	if len(b.Spec.Unallocated) == 0 {
		return netip.Addr{}, false
	}
	ordinal := b.Spec.Unallocated[0]
	b.Spec.Unallocated = b.Spec.Unallocated[1:]
	index := len(b.Spec.Attributes)
	b.Spec.Attributes = append(b.Spec.Attributes, allocation{handle, attributes})
	b.Spec.Allocations[ordinal] = &index
	b.numbered(ordinal)
	return addressAt(b.Spec.CIDR, ordinal), true
}

// free takes the handle's addresses back, behind all that are free already; false when it has none.
func (b *ipamBlock) free(handle string) bool {
	kept := []allocation{}
	moved := map[int]int{}
	for index, given := range b.Spec.Attributes {
		if given.Handle != handle {
			moved[index] = len(kept)
			kept = append(kept, given)
		}
	}
	for ordinal, index := range b.Spec.Allocations {
		if index == nil {
			continue
		}
		if to, ok := moved[*index]; ok {
			b.Spec.Allocations[ordinal] = &to
			continue
		}
		b.Spec.Allocations[ordinal] = nil
		b.Spec.Unallocated = append(b.Spec.Unallocated, ordinal)
		delete(b.Spec.SequenceNumberForAllocation, strconv.Itoa(ordinal))
	}
	freed := len(kept) < len(b.Spec.Attributes)
	b.Spec.Attributes = kept
	b.Spec.SequenceNumber++
	return freed
}

func (b *ipamBlock) numbered(ordinal int) {
	if b.Spec.SequenceNumberForAllocation == nil {
		b.Spec.SequenceNumberForAllocation = map[string]uint64{}
	}
	b.Spec.SequenceNumberForAllocation[strconv.Itoa(ordinal)] = b.Spec.SequenceNumber
	b.Spec.SequenceNumber++
}

// candidates are all blocks of a pool, from one on that the node's name decides, as Calico's IPAM chooses it.
func candidates(pool ipPool, node string) func(func(netip.Prefix) bool) {
	prefix, _ := pool.prefix()
	size := pool.Spec.BlockSize
	if size == 0 {
		size = defaultBlockSize
	}
	count := 1 << max(size-prefix.Bits(), 0)
	seed := fnv.New32()
	seed.Write([]byte(node))
	random := rand.New(rand.NewSource(int64(seed.Sum32())))
	first := int(new(big.Int).Rand(random, big.NewInt(int64(count))).Int64())
	return func(yield func(netip.Prefix) bool) {
		for n := range count {
			address := addressAt(pool.Spec.CIDR, (first+n)%count<<(32-size))
			if !yield(netip.PrefixFrom(address, size)) {
				return
			}
		}
	}
}

func addressAt(cidr string, ordinal int) netip.Addr {
	base := netip.MustParsePrefix(cidr).Masked().Addr().As4()
	var address [4]byte
	binary.BigEndian.PutUint32(address[:], binary.BigEndian.Uint32(base[:])+uint32(ordinal))
	return netip.AddrFrom4(address)
}

func handleName(handle string) string {
	return strings.ToLower(strings.ReplaceAll(handle, "_", "-"))
}

func hostnameHash(node string) string {
	sum := sha3.Sum256([]byte(node))
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:])
}

// retry does something again that another writer came between.
func retry(do func() error) error {
	var err error
	for range attempts {
		if err = do(); !errors.IsConflict(err) && !errors.IsAlreadyExists(err) {
			return err
		}
	}
	return err
}

// ipamPlugin is the CNI plugin calico-ipam; with -upgrade it has nothing to do: there is no older IPAM to take over from.
func ipamPlugin(ctx context.Context, arguments []string) error {
	if slices.Contains(arguments, "-upgrade") {
		fmt.Fprintln(os.Stderr, "calico-ipam: nothing to upgrade from")
		return nil
	}
	return respond(ctx, func(call cniCall) (any, error) {
		addresses := ipam{call.cluster, call.conf.NodeName}
		switch call.command {
		case "ADD":
			address, err := addresses.assign(ctx, call.handle(), call.attributes())
			return call.result(nil, address), err
		case "DEL":
			return nil, addresses.release(ctx, call.handle())
		}
		return nil, nil
	})
}
