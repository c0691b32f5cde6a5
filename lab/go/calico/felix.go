package main

import (
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"log"
	"maps"
	"net"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
)

const (
	ipipDevice  = "tunl0"
	vxlanDevice = "vxlan.calico"
	vxlanID     = 4096
	// Felix's own number for a route's protocol, which names no daemon of iproute2's list.
	routeProtocol = 80
	// From 3.32 on, routes to pods of the node have a metric.
	workloadMetric = 1024

	ipipOverhead  = 20
	vxlanOverhead = 50
	noNICKnown    = 1460

	annotationAddress  = "projectcalico.org/IPv4Address"
	annotationIPIP     = "projectcalico.org/IPv4IPIPTunnelAddr"
	annotationVXLAN    = "projectcalico.org/IPv4VXLANTunnelAddr"
	annotationVXLANMAC = "projectcalico.org/VXLANTunnelMACAddr"
	annotationPodIP    = "cni.projectcalico.org/podIP"
)

// Names of NICs that Felix takes for a host's own when it looks for the MTU.
const usualNICs = `^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)`

// world is all that a node's network follows from.
type world struct {
	node       string
	version    string // of Calico, as in v3.32.1
	backend    string // bird, vxlan or none
	nodes      []core.Node
	pods       []core.Pod
	namespaces []core.Namespace
	policies   []networking.NetworkPolicy
	pools      []ipPool
	affinities []blockAffinity
	felix      felixConfiguration
}

func (w world) self() (core.Node, netip.Prefix, error) {
	for _, node := range w.nodes {
		if node.Name == w.node {
			if address, ok := nodeAddress(node); ok {
				return node, address, nil
			}
		}
	}
	return core.Node{}, netip.Prefix{}, fmt.Errorf("node %s has no %s yet", w.node, annotationAddress)
}

func (w world) ipip() bool  { return slices.ContainsFunc(w.pools, ipPool.ipip) }
func (w world) vxlan() bool { return slices.ContainsFunc(w.pools, ipPool.vxlan) }

// programs says whether Felix, and not BIRD, makes the routes of pools that are not VXLAN's.
func (w world) programs() bool { return w.felix.Spec.ProgramClusterRoutes == "Enabled" }

func (w world) before332() bool {
	var major, minor int
	fmt.Sscanf(w.version, "v%d.%d", &major, &minor)
	return major == 3 && minor < 32
}

func (w world) local() []core.Pod {
	var pods []core.Pod
	for _, pod := range w.pods {
		if _, ok := podAddress(pod); ok && pod.Spec.NodeName == w.node {
			pods = append(pods, pod)
		}
	}
	return pods
}

func (w world) poolOf(cidr netip.Prefix) (ipPool, bool) {
	for _, pool := range w.pools {
		if prefix, ok := pool.prefix(); ok && prefix.Contains(cidr.Addr()) {
			return pool, true
		}
	}
	return ipPool{}, false
}

// blocksOf are the confirmed blocks, the node's own or its peers', each with its node.
func (w world) blocksOf(mine bool) map[netip.Prefix]string {
	blocks := map[netip.Prefix]string{}
	for _, affinity := range w.affinities {
		cidr, err := netip.ParsePrefix(affinity.Spec.CIDR)
		if err == nil && affinity.confirmed() && (affinity.Spec.Node == w.node) == mine {
			blocks[cidr] = affinity.Spec.Node
		}
	}
	return blocks
}

// settings come from Felix's environment first, then from FelixConfiguration, as Calico ranks them.
func (w world) ipipMTU(host int) int {
	return firstNumber(os.Getenv("FELIX_IPINIPMTU"), w.felix.Spec.IPIPMTU, host-ipipOverhead)
}

func (w world) vxlanMTU(host int) int {
	return firstNumber(os.Getenv("FELIX_VXLANMTU"), w.felix.Spec.VXLANMTU, host-vxlanOverhead)
}

func (w world) podMTU(host int) int {
	mtu := host
	if w.ipip() {
		mtu = min(mtu, w.ipipMTU(host))
	}
	if w.vxlan() {
		mtu = min(mtu, w.vxlanMTU(host))
	}
	return mtu
}

func (w world) rules() (ruleInput, map[string][]string, error) {
	in := ruleInput{ipip: w.ipip(), vxlan: w.vxlan(), appendJumps: strings.EqualFold(w.insertMode(), "append")}
	in.toHostAction = strings.ToUpper(environmentOr(os.Getenv, "FELIX_DEFAULTENDPOINTTOHOSTACTION",
		or(w.felix.Spec.DefaultEndpointToHostAction, "DROP")))
	local := w.local()
	policies, sets, err := readPolicies(w.policies, local, w.pods, w.namespaces)
	if err != nil {
		return in, nil, err
	}
	in.policies = policies
	for _, pod := range local {
		in.workloads = append(in.workloads, workloadOf(pod, policies))
	}
	slices.SortFunc(in.workloads, func(a, b workload) int { return strings.Compare(a.iface, b.iface) })
	hosts, tunnels := []string{}, []string{}
	for _, node := range w.nodes {
		if address, ok := nodeAddress(node); ok {
			hosts = append(hosts, address.Addr().String())
			tunnels = append(tunnels, address.Addr().String())
		}
	}
	all, masqueraded := []string{}, []string{}
	for _, pool := range w.pools {
		prefix, ok := pool.prefix()
		if !ok {
			continue
		}
		all = append(all, prefix.String())
		if pool.Spec.NATOutgoing {
			masqueraded = append(masqueraded, prefix.String())
		}
	}
	in.natOutgoing = len(masqueraded) > 0
	own, err := hostAddresses()
	sets[setHosts], sets[setPools], sets[setMasq], sets[setThisHost], sets[setDSCP] = hosts, all, masqueraded, own, []string{}
	if in.vxlan {
		sets[setVXLAN] = tunnels
	}
	return in, sets, err
}

func (w world) insertMode() string {
	return environmentOr(os.Getenv, "FELIX_CHAININSERTMODE", w.felix.Spec.ChainInsertMode)
}

func workloadOf(pod core.Pod, policies []policy) workload {
	w := workload{iface: vethName(pod.Namespace, pod.Name), profiles: []string{
		"kns." + pod.Namespace, "ksa." + pod.Namespace + "." + or(pod.Spec.ServiceAccountName, "default"),
	}}
	for _, p := range policies {
		if !p.selects(pod) {
			continue
		}
		if p.ingress != nil {
			w.ingress = append(w.ingress, p.id())
		}
		if p.egress != nil {
			w.egress = append(w.egress, p.id())
		}
	}
	return w
}

// dataplane brings the kernel of this node to what the world asks for; again and again with the same result.
// Rules and sets are as last written, and are looked at again when they are empty.
type dataplane struct {
	sets   map[string][]string
	tables []table
}

func (d *dataplane) apply(ctx context.Context, w world) error {
	_, address, err := w.self()
	if err != nil {
		return err
	}
	in, sets, err := w.rules()
	if err != nil {
		return err
	}
	if err := applySets(ctx, sets, d.sets); err != nil {
		d.sets = nil
		return err
	}
	d.sets = sets
	wanted := tables(in)
	if changed := d.changed(wanted); len(changed) > 0 {
		if err := apply(ctx, changed); err != nil {
			d.tables = nil
			return err
		}
		d.tables = wanted
		if err := removeSets(ctx, d.unused(ctx)); err != nil {
			log.Print(err)
		}
	}
	return errors.Join(d.devicesAndRoutes(w, address), d.workloads(w, in.workloads))
}

func (d *dataplane) changed(wanted []table) []table {
	return slices.DeleteFunc(slices.Clone(wanted), func(t table) bool {
		return slices.ContainsFunc(d.tables, func(written table) bool { return reflect.DeepEqual(t, written) })
	})
}

func (d *dataplane) unused(ctx context.Context) []string {
	text, err := run(ctx, "", "/usr/sbin/ipset", "list", "-n")
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(strings.Fields(text), func(name string) bool {
		_, wanted := d.sets[name]
		return wanted || !strings.HasPrefix(name, "cali40s:")
	})
}

func (d *dataplane) devicesAndRoutes(w world, address netip.Prefix) error {
	host, err := hostMTU(or(w.felix.Spec.MTUIfacePattern, usualNICs))
	if err != nil {
		return err
	}
	if err := replaceFile(mtuFile, []byte(strconv.Itoa(w.podMTU(host))), 0o644); err != nil {
		return err
	}
	wanted := map[string]*netlink.Route{}
	if w.ipip() {
		tunnel, err := d.ipip(w, host)
		if err != nil {
			return err
		}
		if w.programs() {
			w.ipipRoutes(address, tunnel, w.ipipMTU(host), wanted)
		}
	}
	if w.vxlan() {
		tunnel, err := d.vxlan(w, address, host)
		if err != nil {
			return err
		}
		if err := w.vxlanRoutes(tunnel, w.vxlanMTU(host), wanted); err != nil {
			return err
		}
	}
	return syncRoutes(wanted)
}

func (d *dataplane) ipip(w world, host int) (netlink.Link, error) {
	link, err := netlink.LinkByName(ipipDevice)
	if err != nil {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = ipipDevice
		if err := netlink.LinkAdd(&netlink.Iptun{LinkAttrs: attributes}); err != nil && !errors.Is(err, syscall.EEXIST) {
			return nil, fmt.Errorf("tunl0: %w", err)
		}
		if link, err = netlink.LinkByName(ipipDevice); err != nil {
			return nil, err
		}
	}
	self, _, _ := w.self()
	return link, configureDevice(link, self.Annotations[annotationIPIP], w.ipipMTU(host))
}

func (d *dataplane) vxlan(w world, address netip.Prefix, host int) (netlink.Link, error) {
	self, _, _ := w.self()
	link, err := netlink.LinkByName(vxlanDevice)
	if err != nil {
		parent, err := linkOf(address.Addr())
		if err != nil {
			return nil, err
		}
		attributes := netlink.NewLinkAttrs()
		attributes.Name, attributes.HardwareAddr = vxlanDevice, tunnelMAC(self)
		device := &netlink.Vxlan{
			LinkAttrs: attributes, VxlanId: vxlanID, Port: 4789, VtepDevIndex: parent.Attrs().Index, SrcAddr: address.Addr().AsSlice(),
		}
		if err := netlink.LinkAdd(device); err != nil {
			return nil, fmt.Errorf("%s: %w", vxlanDevice, err)
		}
		if link, err = netlink.LinkByName(vxlanDevice); err != nil {
			return nil, err
		}
	}
	return link, configureDevice(link, self.Annotations[annotationVXLAN], w.vxlanMTU(host))
}

func configureDevice(link netlink.Link, address string, mtu int) error {
	if link.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return err
		}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
	}
	existing, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	there := false
	for _, old := range existing {
		if old.IP.String() == address {
			there = true
		} else if err := netlink.AddrDel(link, &old); err != nil {
			return err
		}
	}
	wanted, err := netip.ParseAddr(address)
	if there || err != nil {
		return nil
	}
	return netlink.AddrAdd(link, &netlink.Addr{IPNet: ipnet(netip.PrefixFrom(wanted, 32))})
}

// ipipRoutes are those to the peers' blocks through the tunnel, and a blackhole for each own one.
func (w world) ipipRoutes(address netip.Prefix, tunnel netlink.Link, mtu int, wanted map[string]*netlink.Route) {
	for cidr := range w.blocksOf(true) {
		if pool, ok := w.poolOf(cidr); ok && !pool.vxlan() {
			wanted[cidr.String()] = &netlink.Route{Dst: ipnet(cidr), Type: syscall.RTN_BLACKHOLE, Protocol: routeProtocol}
		}
	}
	peers := map[string]core.Node{}
	for _, node := range w.nodes {
		peers[node.Name] = node
	}
	index := tunnel.Attrs().Index
	through := func(cidr, peer netip.Prefix) *netlink.Route {
		return &netlink.Route{
			LinkIndex: index, Dst: ipnet(cidr), Gw: peer.Addr().AsSlice(), MTU: mtu,
			Flags: int(netlink.FLAG_ONLINK), Protocol: routeProtocol,
		}
	}
	for cidr, name := range w.blocksOf(false) {
		pool, ok := w.poolOf(cidr)
		peer, known := nodeAddress(peers[name])
		switch {
		case !ok || !known || pool.vxlan():
		case pool.ipip() && !(pool.crossSubnet() && address.Masked().Contains(peer.Addr())):
			wanted[cidr.String()] = through(cidr, peer)
		default:
			wanted[cidr.String()] = &netlink.Route{Dst: ipnet(cidr), Gw: peer.Addr().AsSlice(), Protocol: routeProtocol}
		}
	}
	if !w.before332() {
		return
	}
	for _, node := range w.nodes {
		own, err := netip.ParseAddr(node.Annotations[annotationIPIP])
		if peer, known := nodeAddress(node); known && err == nil && node.Name != w.node {
			cidr := netip.PrefixFrom(own, 32)
			wanted[cidr.String()] = through(cidr, peer)
		}
	}
}

// vxlanRoutes go by the peers' tunnel addresses, whose neighbour and forwarding entries are made with them.
func (w world) vxlanRoutes(tunnel netlink.Link, mtu int, wanted map[string]*netlink.Route) error {
	index := tunnel.Attrs().Index
	vteps := map[string]net.IP{}
	for _, node := range w.nodes {
		peer, known := nodeAddress(node)
		vtep := net.ParseIP(node.Annotations[annotationVXLAN])
		if !known || vtep == nil || node.Name == w.node {
			continue
		}
		vteps[node.Name] = vtep
		mac := tunnelMAC(node)
		neighbour := netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: vtep, HardwareAddr: mac, Family: syscall.AF_INET}
		forwarding := netlink.Neigh{
			LinkIndex: index, State: netlink.NUD_PERMANENT, IP: peer.Addr().AsSlice(), HardwareAddr: mac,
			Family: syscall.AF_BRIDGE, Flags: netlink.NTF_SELF,
		}
		for _, entry := range []netlink.Neigh{neighbour, forwarding} {
			if err := netlink.NeighSet(&entry); err != nil {
				return fmt.Errorf("%s: entry for %s: %w", vxlanDevice, node.Name, err)
			}
		}
	}
	for cidr := range w.blocksOf(true) {
		if pool, ok := w.poolOf(cidr); ok && pool.vxlan() {
			wanted[cidr.String()] = &netlink.Route{Dst: ipnet(cidr), Type: syscall.RTN_BLACKHOLE, Protocol: routeProtocol}
		}
	}
	for cidr, name := range w.blocksOf(false) {
		pool, ok := w.poolOf(cidr)
		if gateway, known := vteps[name]; ok && known && pool.vxlan() {
			wanted[cidr.String()] = &netlink.Route{
				LinkIndex: index, Dst: ipnet(cidr), Gw: gateway, MTU: mtu, Flags: int(netlink.FLAG_ONLINK), Protocol: routeProtocol,
			}
		}
	}
	return nil
}

// tunnelMAC is what the node says, or what Calico derives from its name.
func tunnelMAC(node core.Node) net.HardwareAddr {
	if said, err := net.ParseMAC(node.Annotations[annotationVXLANMAC]); err == nil {
		return said
	}
	sum := sha1.Sum([]byte(node.Name))
	return append(net.HardwareAddr{0x66}, sum[:5]...)
}

// syncRoutes makes the wanted routes, by destination, and removes every other one of Felix's.
func syncRoutes(wanted map[string]*netlink.Route) error {
	existing, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: syscall.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return err
	}
	missing := maps.Clone(wanted)
	for _, route := range existing {
		if route.Dst == nil || route.Protocol != routeProtocol {
			continue
		}
		key := route.Dst.String()
		if same(route, wanted[key]) {
			delete(missing, key)
		} else if _, ok := wanted[key]; !ok {
			if err := netlink.RouteDel(&route); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("route to %s: %w", key, err)
			}
		}
	}
	var problems []error
	for key, route := range missing {
		if err := netlink.RouteReplace(route); err != nil {
			problems = append(problems, fmt.Errorf("route to %s: %w", key, err))
		}
	}
	return errors.Join(problems...)
}

func same(is netlink.Route, wanted *netlink.Route) bool {
	if wanted == nil {
		return false
	}
	blackhole := is.Type == syscall.RTN_BLACKHOLE
	return blackhole == (wanted.Type == syscall.RTN_BLACKHOLE) && is.Gw.Equal(wanted.Gw) && is.MTU == wanted.MTU &&
		(wanted.LinkIndex == 0 || is.LinkIndex == wanted.LinkIndex)
}

// workloads keeps the route and the sysctls of each pod's interface, with the metric that Felix gives them from 3.32 on.
func (d *dataplane) workloads(w world, present []workload) error {
	addresses := map[string]netip.Addr{}
	for _, pod := range w.local() {
		address, _ := podAddress(pod)
		addresses[vethName(pod.Namespace, pod.Name)] = address
	}
	var problems []error
	for _, each := range present {
		link, err := netlink.LinkByName(each.iface)
		if err != nil {
			continue // not made yet, or gone already
		}
		problems = append(problems, workloadSysctls(each.iface), w.workloadRoute(link, addresses[each.iface]))
		// The raw table does the reverse path check, so that it can be told from others' drops.
		problems = append(problems, os.WriteFile("/proc/sys/net/ipv4/conf/"+each.iface+"/rp_filter", []byte("0"), 0o644))
	}
	return errors.Join(problems...)
}

func (w world) workloadRoute(link netlink.Link, address netip.Addr) error {
	metric := workloadMetric
	if w.before332() {
		metric = 0
	}
	existing, err := netlink.RouteList(link, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	wanted := ipnet(netip.PrefixFrom(address, 32))
	there := false
	var old []netlink.Route
	for _, route := range existing {
		if route.Dst != nil && route.Dst.String() == wanted.String() && route.Priority == metric {
			there = true
		} else {
			old = append(old, route)
		}
	}
	if !there {
		route := &netlink.Route{
			LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: wanted, Priority: metric, Protocol: syscall.RTPROT_BOOT,
		}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("route to %s: %w", address, err)
		}
	}
	for _, route := range old {
		if err := netlink.RouteDel(&route); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil
}

// hostMTU is the smallest of the NICs that look like a host's own.
func hostMTU(pattern string) (int, error) {
	names, err := regexp.Compile(pattern)
	if err != nil {
		return 0, err
	}
	links, err := netlink.LinkList()
	if err != nil {
		return 0, err
	}
	smallest := 0
	for _, link := range links {
		is := link.Attrs()
		if names.MatchString(is.Name) && is.Flags&net.FlagUp != 0 && (smallest == 0 || is.MTU < smallest) {
			smallest = is.MTU
		}
	}
	if smallest == 0 {
		return noNICKnown, nil
	}
	return smallest, nil
}

func linkOf(address netip.Addr) (netlink.Link, error) {
	all, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	for _, found := range all {
		if found.IP.String() == address.String() {
			return netlink.LinkByIndex(found.LinkIndex)
		}
	}
	return nil, fmt.Errorf("no interface has the address %s", address)
}

// hostAddresses are the machine's own, the network of the loopback's as the kernel's local table has it.
func hostAddresses() ([]string, error) {
	all, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	found := []string{"127.0.0.0"}
	for _, address := range all {
		found = append(found, address.IP.String())
	}
	slices.Sort(found)
	return slices.Compact(found), err
}

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

// firstNumber: 0 and an empty text mean that it is not set.
func firstNumber(text string, numbers ...int) int {
	if number, err := strconv.Atoi(text); err == nil && number != 0 {
		return number
	}
	for _, number := range numbers {
		if number != 0 {
			return number
		}
	}
	return 0
}
