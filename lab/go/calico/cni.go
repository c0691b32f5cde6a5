package main

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	nodeNameFile = "/var/lib/calico/nodename"
	mtuFile      = "/var/lib/calico/mtu"
	pluginLimit  = 60 * time.Second
)

var (
	gateway  = net.IPv4(169, 254, 1, 1)
	hostSide = net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}
)

// cniConf is the plugin's configuration, as the manifest's cni_network_config has it.
type cniConf struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	NodeName   string `json:"nodename"`
	MTU        int    `json:"mtu"`
	IPAM       struct {
		Type string `json:"type"`
	} `json:"ipam"`
	Kubernetes struct {
		Kubeconfig string `json:"kubeconfig"`
	} `json:"kubernetes"`
	ContainerSettings struct {
		AllowIPForwarding bool `json:"allow_ip_forwarding"`
	} `json:"container_settings"`
	PrevResult json.RawMessage `json:"prevResult"`
}

// cniCall is one call by the container runtime.
type cniCall struct {
	command, container, netns, ifname string
	namespace, pod                    string
	conf                              cniConf
	cluster                           *cluster
}

type cniResult struct {
	CNIVersion string         `json:"cniVersion"`
	Interfaces []cniInterface `json:"interfaces,omitempty"`
	IPs        []cniAddress   `json:"ips"`
	DNS        struct{}       `json:"dns"`
}

type cniInterface struct {
	Name string `json:"name"`
}

type cniAddress struct {
	Version string `json:"version,omitempty"` // only before 1.0.0
	Address string `json:"address"`
}

func plugin(ctx context.Context, _ []string) error {
	return respond(ctx, func(call cniCall) (any, error) {
		switch call.command {
		case "ADD":
			return call.add(ctx)
		case "DEL":
			return nil, call.remove(ctx)
		}
		return nil, nil
	})
}

// respond answers a call by what do returns, in the form that CNI asks for.
func respond(ctx context.Context, do func(cniCall) (any, error)) error {
	if os.Getenv("CNI_COMMAND") == "VERSION" {
		return json.NewEncoder(os.Stdout).Encode(map[string]any{
			"cniVersion": "1.0.0", "supportedVersions": []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0"},
		})
	}
	call, err := readCall()
	var answer any
	if err == nil {
		answer, err = do(call)
	}
	if err != nil {
		json.NewEncoder(os.Stdout).Encode(map[string]any{"cniVersion": call.conf.CNIVersion, "code": 999, "msg": err.Error()})
		os.Exit(1)
	}
	if answer == nil {
		return nil
	}
	return json.NewEncoder(os.Stdout).Encode(answer)
}

func readCall() (cniCall, error) {
	call := cniCall{
		command:   os.Getenv("CNI_COMMAND"),
		container: os.Getenv("CNI_CONTAINERID"),
		netns:     os.Getenv("CNI_NETNS"),
		ifname:    os.Getenv("CNI_IFNAME"),
	}
	for _, pair := range strings.Split(os.Getenv("CNI_ARGS"), ";") {
		switch key, value, _ := strings.Cut(pair, "="); key {
		case "K8S_POD_NAMESPACE":
			call.namespace = value
		case "K8S_POD_NAME":
			call.pod = value
		}
	}
	if err := json.NewDecoder(os.Stdin).Decode(&call.conf); err != nil {
		return call, err
	}
	if call.command == "CHECK" {
		return call, nil
	}
	// The agent writes it when it starts; without it nobody would route to the pod.
	name, err := os.ReadFile(nodeNameFile)
	if err != nil {
		return call, fmt.Errorf("%w: check that the calico/node container is running and has mounted /var/lib/calico/", err)
	}
	call.conf.NodeName = strings.TrimSpace(string(name))
	config, err := clientcmd.BuildConfigFromFlags("", call.conf.Kubernetes.Kubeconfig)
	if err != nil {
		return call, err
	}
	config.Timeout = pluginLimit
	call.cluster, err = connect(config)
	return call, err
}

func (c cniCall) handle() string { return c.conf.Name + "." + c.container }

func (c cniCall) attributes() map[string]string {
	return map[string]string{
		"namespace": c.namespace, "node": c.conf.NodeName, "pod": c.pod, "timestamp": time.Now().UTC().String(),
	}
}

func (c cniCall) result(interfaces []cniInterface, address netip.Addr) cniResult {
	given := cniAddress{Address: netip.PrefixFrom(address, 32).String()}
	if strings.HasPrefix(c.conf.CNIVersion, "0.") {
		given.Version = "4"
	}
	return cniResult{CNIVersion: c.conf.CNIVersion, Interfaces: interfaces, IPs: []cniAddress{given}}
}

func (c cniCall) add(ctx context.Context) (any, error) {
	if c.conf.IPAM.Type != "calico-ipam" {
		return nil, fmt.Errorf("the stand-in for Calico's plugin has only the IPAM calico-ipam, and not %q", c.conf.IPAM.Type)
	}
	mtu, err := c.mtu()
	if err != nil {
		return nil, err
	}
	addresses := ipam{c.cluster, c.conf.NodeName}
	address, err := addresses.assign(ctx, c.handle(), c.attributes())
	if err != nil {
		return nil, err
	}
	name := vethName(c.namespace, c.pod)
	if err := c.connectPod(name, address, mtu); err != nil {
		return nil, errors.Join(err, addresses.release(ctx, c.handle()))
	}
	if err := c.tellPod(ctx, netip.PrefixFrom(address, 32).String()); err != nil {
		return nil, errors.Join(err, c.remove(ctx))
	}
	return c.result([]cniInterface{{name}}, address), nil
}

func (c cniCall) remove(ctx context.Context) error {
	if err := (ipam{c.cluster, c.conf.NodeName}).release(ctx, c.handle()); err != nil {
		return err
	}
	if c.netns == "" {
		return nil
	}
	err := inside(c.netns, func() error {
		link, err := netlink.LinkByName(c.ifname)
		if err != nil {
			return nil
		}
		return netlink.LinkDel(link)
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func (c cniCall) mtu() (int, error) {
	if c.conf.MTU != 0 {
		return c.conf.MTU, nil
	}
	text, err := os.ReadFile(mtuFile)
	if errors.Is(err, os.ErrNotExist) {
		return 1500, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// connectPod makes the veth pair: in the pod a /32 and a default route by a link-local address that the host answers
// ARP for, on the host a route to the pod.
func (c cniCall) connectPod(name string, address netip.Addr, mtu int) error {
	host, err := netns.Get()
	if err != nil {
		return err
	}
	defer host.Close()
	if old, err := netlink.LinkByName(name); err == nil {
		if err := netlink.LinkDel(old); err != nil {
			return err
		}
	}
	pod := ipnet(netip.PrefixFrom(address, 32))
	err = inside(c.netns, func() error {
		attributes := netlink.NewLinkAttrs()
		attributes.Name, attributes.MTU = c.ifname, mtu
		pair := &netlink.Veth{LinkAttrs: attributes, PeerName: name, PeerNamespace: netlink.NsFd(int(host))}
		if err := netlink.LinkAdd(pair); err != nil {
			return fmt.Errorf("veth pair %s and %s: %w", c.ifname, name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	outer, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetHardwareAddr(outer, hostSide); err != nil {
		return err
	}
	if err := workloadSysctls(name); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(outer); err != nil {
		return err
	}
	if err := inside(c.netns, func() error { return c.configurePod(pod) }); err != nil {
		return err
	}
	route := &netlink.Route{LinkIndex: outer.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: pod}
	if err := netlink.RouteAdd(route); err != nil && !errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("route to %s by %s: %w", pod, name, err)
	}
	return nil
}

func (c cniCall) configurePod(address *net.IPNet) error {
	inner, err := netlink.LinkByName(c.ifname)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(inner); err != nil {
		return err
	}
	index := inner.Attrs().Index
	link := &netlink.Route{LinkIndex: index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: gateway, Mask: net.CIDRMask(32, 32)}}
	if err := netlink.RouteAdd(link); err != nil {
		return err
	}
	everything := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: index, Dst: everything, Gw: gateway}); err != nil {
		return err
	}
	if err := netlink.AddrAdd(inner, &netlink.Addr{IPNet: address}); err != nil {
		return err
	}
	forwarding := "0"
	if c.conf.ContainerSettings.AllowIPForwarding {
		forwarding = "1"
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte(forwarding), 0o644)
}

// tellPod notes the address on the pod: the agents learn it from there, before the kubelet reports it.
func (c cniCall) tellPod(ctx context.Context, address string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{
		"cni.projectcalico.org/containerID": c.container,
		annotationPodIP:                     address,
		"cni.projectcalico.org/podIPs":      address,
	}}})
	if err != nil {
		return err
	}
	_, err = c.cluster.kube.CoreV1().Pods(c.namespace).Patch(
		ctx, c.pod, types.MergePatchType, patch, meta.PatchOptions{}, "status")
	return err
}

// vethName is the host's end of a pod's veth pair, as Calico derives it.
func vethName(namespace, pod string) string {
	sum := sha1.Sum([]byte(namespace + "." + pod))
	return "cali" + hex.EncodeToString(sum[:])[:11]
}

func workloadSysctls(name string) error {
	settings := [][2]string{
		{"conf/" + name + "/route_localnet", "1"},
		{"neigh/" + name + "/proxy_delay", "0"},
		{"conf/" + name + "/proxy_arp", "1"},
		{"conf/" + name + "/forwarding", "1"},
	}
	for _, setting := range settings {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+setting[0], []byte(setting[1]), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// inside runs do in another network namespace, on a thread that does nothing else meanwhile.
func inside(path string, do func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := netns.Get()
	if err != nil {
		return err
	}
	defer before.Close()
	there, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	defer there.Close()
	if err := netns.Set(there); err != nil {
		return err
	}
	return errors.Join(do(), netns.Set(before))
}

func ipnet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
}
