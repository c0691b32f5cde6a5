package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"
)

const (
	healthAddress = "localhost:9099"
	// Felix looks after its routes and interfaces every 90 seconds, and after its rules every 180.
	refresh  = 90 * time.Second
	settle   = 50 * time.Millisecond
	giveAway = 2 * time.Second // before another attempt
)

// node is the agent, or with a flag one of the questions and orders that the manifest's probes and hooks have for it.
func node(ctx context.Context, arguments []string) error {
	flags := flag.NewFlagSet("calico-node", flag.ContinueOnError)
	asks := map[string]func(context.Context) error{
		"felix-ready": func(ctx context.Context) error { return healthy(ctx, "readiness") },
		"felix-live":  func(ctx context.Context) error { return healthy(ctx, "liveness") },
		"bird-ready":  func(context.Context) error { return birdReady() },
		"bird-live":   func(context.Context) error { _, err := birdSays("show status"); return err },
		"shutdown":    shutdown,
	}
	asked := map[string]*bool{}
	for name := range asks {
		asked[name] = flags.Bool(name, false, "")
	}
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	any := false
	var problems []error
	for name, yes := range asked {
		if *yes {
			any = true
			problems = append(problems, asks[name](ctx))
		}
	}
	if any {
		return errors.Join(problems...)
	}
	return serve(ctx)
}

func healthy(ctx context.Context, what string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+healthAddress+"/"+what, nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("calico/node is not ready: Felix is not live: %w", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("calico/node is not ready: felix is not ready: %s probe reporting %d", what, answer.StatusCode)
	}
	return nil
}

type agent struct {
	*cluster
	name    string
	world   world
	changed chan struct{}
	ready   atomic.Bool
	kernel  dataplane
	bird    bird
	stores  map[string]cache.GenericLister
}

func serve(ctx context.Context) error {
	calico, err := connectInCluster()
	if err != nil {
		return err
	}
	a := &agent{cluster: calico, name: os.Getenv("NODENAME"), changed: make(chan struct{}, 1)}
	a.world = world{node: a.name, version: os.Getenv("CALICO_VERSION"), backend: os.Getenv("CALICO_NETWORKING_BACKEND")}
	go answerProbes(healthAddress, a.ready.Load)
	if err := a.start(ctx); err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(ctx)
	if err := a.askTypha(ctx, end); err != nil {
		return err
	}
	log.Printf("Calico node started successfully (stand-in for netmend's lab, as %s, backend %s)", a.world.version, a.world.backend)
	go a.renewToken(ctx)
	if err := a.watch(ctx); err != nil {
		return err
	}
	a.keepInSync(ctx)
	if why := context.Cause(ctx); !errors.Is(why, context.Canceled) {
		return why
	}
	return nil
}

// start is what calico-node does once, before anything else: the node's address, its name for the plugin, the pool.
func (a *agent) start(ctx context.Context) error {
	self, err := a.nodes.get(ctx, a.name)
	if err != nil {
		return err
	}
	address, err := detectAddress(self)
	if err != nil {
		return err
	}
	if address != self.Annotations[annotationAddress] {
		log.Printf("Using IPv4 address %s", address)
		if err := a.annotate(ctx, a.name, map[string]string{annotationAddress: address}); err != nil {
			return err
		}
	}
	if err := a.ensurePool(ctx); err != nil {
		return err
	}
	pools, err := a.pools.list(ctx)
	if err != nil {
		return err
	}
	w := a.world
	w.pools = pools
	if err := a.tunnelAddresses(ctx, w, self); err != nil {
		return err
	}
	// It lets the plugin work, and the tunnel's end is to have the first address of the node's first block.
	if err := replaceFile(nodeNameFile, []byte(a.name), 0o644); err != nil {
		return err
	}
	return a.condition(ctx, core.ConditionFalse, "CalicoIsUp", "Calico is running on this node")
}

func shutdown(ctx context.Context) error {
	calico, err := connectInCluster()
	if err != nil {
		return err
	}
	a := &agent{cluster: calico, name: os.Getenv("NODENAME")}
	return a.condition(ctx, core.ConditionTrue, "CalicoIsDown", "Calico is shutting down on this node")
}

func (a *agent) condition(ctx context.Context, status core.ConditionStatus, reason, message string) error {
	now := meta.Now()
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []core.NodeCondition{{
		Type: core.NodeNetworkUnavailable, Status: status, Reason: reason, Message: message,
		LastTransitionTime: now, LastHeartbeatTime: now,
	}}}})
	if err != nil {
		return err
	}
	_, err = a.kube.CoreV1().Nodes().PatchStatus(ctx, a.name, patch)
	return err
}

// ensurePool makes the pool of the environment when the cluster has none yet; later the environment says nothing.
func (a *agent) ensurePool(ctx context.Context) error {
	if os.Getenv("NO_DEFAULT_POOLS") == "true" {
		if os.Getenv("CALICO_IPV4POOL_CIDR") != "" {
			return errors.New("invalid configuration with NO_DEFAULT_POOLS defined and CALICO_IPV4POOL_CIDR defined")
		}
		return nil
	}
	pools, err := a.pools.list(ctx)
	if err != nil || len(pools) > 0 {
		return err
	}
	var pool ipPool
	pool.Name = "default-ipv4-ippool"
	pool.Spec.CIDR = environmentOr(os.Getenv, "CALICO_IPV4POOL_CIDR", "192.168.0.0/16")
	pool.Spec.IPIPMode = environmentOr(os.Getenv, "CALICO_IPV4POOL_IPIP", "Never")
	pool.Spec.VXLANMode = environmentOr(os.Getenv, "CALICO_IPV4POOL_VXLAN", "Never")
	pool.Spec.BlockSize = firstNumber(os.Getenv("CALICO_IPV4POOL_BLOCK_SIZE"), defaultBlockSize)
	pool.Spec.NATOutgoing = os.Getenv("CALICO_IPV4POOL_NAT_OUTGOING") != "false"
	if _, err = a.pools.create(ctx, pool); apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// watch keeps what the agent has to know in memory, and says when any of it changed.
func (a *agent) watch(ctx context.Context) error {
	factory := dynamicinformer.NewDynamicSharedInformerFactory(a.dynamic, 0)
	a.stores = map[string]cache.GenericLister{}
	changed := func(any) { a.wake() }
	for _, resource := range []schema.GroupVersionResource{
		a.cluster.nodes.resource, a.cluster.pods.resource, a.cluster.namespaces.resource, a.cluster.policies.resource,
		a.cluster.pools.resource, a.cluster.affinities.resource, a.cluster.felix.resource, a.cluster.bgp.resource,
	} {
		informer := factory.ForResource(resource)
		_, err := informer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: changed, DeleteFunc: changed, UpdateFunc: func(before, item any) {
				if !reflect.DeepEqual(looked(before), looked(item)) {
					changed(item)
				}
			},
		})
		if err != nil {
			return err
		}
		a.stores[resource.Resource] = informer.Lister()
	}
	factory.Start(ctx.Done())
	for resource, ok := range factory.WaitForCacheSync(ctx.Done()) {
		if !ok {
			return fmt.Errorf("%s cannot be watched", resource.Resource)
		}
	}
	return nil
}

// looked is what the agent looks at of an object: most of what nodes and pods say in their status is none of it.
func looked(item any) map[string]any {
	content := item.(*unstructured.Unstructured).Object
	found := map[string]any{}
	for _, path := range []string{"metadata.labels", "metadata.annotations", "spec", "status.addresses", "status.phase", "status.podIP"} {
		found[path], _, _ = unstructured.NestedFieldNoCopy(content, strings.Split(path, ".")...)
	}
	return found
}

func (a *agent) wake() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

func (a *agent) keepInSync(ctx context.Context) {
	a.wake()
	timer := time.NewTicker(refresh)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			a.kernel = dataplane{}
		case <-a.changed:
			// What comes together is worked on together.
			time.Sleep(settle)
			select {
			case <-a.changed:
			default:
			}
		}
		if err := a.sync(ctx); err != nil && ctx.Err() == nil {
			log.Print(err)
			time.AfterFunc(giveAway, a.wake)
			continue
		}
		a.ready.Store(true)
	}
}

func (a *agent) sync(ctx context.Context) error {
	w := a.world
	var bgp []bgpConfiguration
	var felix []felixConfiguration
	err := errors.Join(
		all(a.stores["nodes"], &w.nodes), all(a.stores["pods"], &w.pods), all(a.stores["namespaces"], &w.namespaces),
		all(a.stores["networkpolicies"], &w.policies), all(a.stores["ippools"], &w.pools),
		all(a.stores["blockaffinities"], &w.affinities), all(a.stores["felixconfigurations"], &felix),
		all(a.stores["bgpconfigurations"], &bgp),
	)
	if err != nil {
		return err
	}
	for _, configuration := range felix {
		if configuration.Name == "default" {
			w.felix = configuration
		}
	}
	self, _, err := w.self()
	if err != nil {
		return err
	}
	if err := a.tunnelAddresses(ctx, w, self); err != nil {
		return err
	}
	err = a.kernel.apply(ctx, w)
	if w.backend == "bird" {
		err = errors.Join(err, a.bird.keep(ctx, w, bgp))
	}
	return err
}

func (a *agent) tunnelAddresses(ctx context.Context, w world, self core.Node) error {
	return errors.Join(
		a.tunnelAddress(ctx, w, self, annotationIPIP, "ipip-tunnel-addr-"+a.name, "ipipTunnelAddress", w.ipip()),
		a.tunnelAddress(ctx, w, self, annotationVXLAN, "vxlan-tunnel-addr-"+a.name, "vxlanTunnelAddress", w.vxlan()),
	)
}

// tunnelAddress has one address of the node's blocks for the tunnel's end, in the annotation that the peers read.
func (a *agent) tunnelAddress(ctx context.Context, w world, self core.Node, annotation, handle, kind string, wanted bool) error {
	has, err := netip.ParseAddr(self.Annotations[annotation])
	pool, inPool := w.poolOf(netip.PrefixFrom(has, 32))
	right := err == nil && inPool && !pool.Spec.Disabled
	addresses := ipam{a.cluster, a.name}
	switch {
	case right == wanted || !wanted && err != nil:
		return nil
	case !wanted:
		if err := addresses.release(ctx, handle); err != nil {
			return err
		}
		return a.annotate(ctx, a.name, map[string]string{annotation: ""})
	}
	// What an attempt that was interrupted took is given back first.
	if err := addresses.release(ctx, handle); err != nil {
		return err
	}
	given, err := addresses.assign(ctx, handle, map[string]string{"node": a.name, "type": kind})
	if err != nil {
		return err
	}
	log.Printf("Assigned tunnel address %s to node", given)
	values := map[string]string{annotation: given.String()}
	if annotation == annotationVXLAN {
		values[annotationVXLANMAC] = tunnelMAC(self).String()
	}
	return a.annotate(ctx, a.name, values)
}

func all[T any](store cache.GenericLister, into *[]T) error {
	objects, err := store.List(labels.Everything())
	if err != nil {
		return err
	}
	for _, object := range objects {
		var item T
		content := object.(*unstructured.Unstructured).Object
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(content, &item); err != nil {
			return err
		}
		*into = append(*into, item)
	}
	return nil
}

// renewToken keeps the plugin's credentials on the host fresh.
func (a *agent) renewToken(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(tokenLifetime / 4):
			if err := writeKubeconfig(ctx); err != nil {
				log.Print(err)
			}
		}
	}
}

// notHosts are interfaces that the methods which search them all never take.
var notHosts = regexp.MustCompile(
	`^(docker|cbr|dummy|podman|virbr|lxcbr|veth|lo|br-|cali|tunl|flannel|kube-ipvs|cni|vxlan\.calico|wireguard\.cali|nodelocaldns)`)

// detectAddress is the node's IPv4 address with its prefix, by IP and IP_AUTODETECTION_METHOD.
func detectAddress(self core.Node) (string, error) {
	if fixed := os.Getenv("IP"); fixed != "" && fixed != "autodetect" {
		if strings.Contains(fixed, "/") {
			return fixed, nil
		}
		return fixed + "/32", nil
	}
	method := os.Getenv("IP_AUTODETECTION_METHOD")
	candidates, err := interfaceAddresses()
	if err != nil {
		return "", err
	}
	for _, found := range candidates {
		ok, err := suits(method, found, self)
		if err != nil {
			return "", err
		}
		if ok {
			return found.address.String(), nil
		}
	}
	return "", fmt.Errorf("couldn't autodetect an IPv4 address by %q", method)
}

type interfaceAddress struct {
	name    string
	address netip.Prefix
}

// interfaceAddresses has the last interface first, which is the order that Calico searches in.
func interfaceAddresses() (found []interfaceAddress, _ error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	slices.Reverse(interfaces)
	for _, each := range interfaces {
		addresses, err := each.Addrs()
		if err != nil {
			return nil, err
		}
		for _, address := range addresses {
			prefix, err := netip.ParsePrefix(address.String())
			if err == nil && prefix.Addr().Is4() && prefix.Addr().IsGlobalUnicast() {
				found = append(found, interfaceAddress{each.Name, prefix})
			}
		}
	}
	return found, nil
}

func suits(method string, found interfaceAddress, self core.Node) (bool, error) {
	name, value, _ := strings.Cut(method, "=")
	switch name {
	case "", "first-found":
		return !notHosts.MatchString(found.name), nil
	case "kubernetes-internal-ip":
		return slices.ContainsFunc(self.Status.Addresses, func(address core.NodeAddress) bool {
			return address.Type == core.NodeInternalIP && address.Address == found.address.Addr().String()
		}), nil
	case "interface", "skip-interface":
		pattern, err := regexp.Compile("(" + strings.Join(regexp.MustCompile(`\s*,\s*`).Split(value, -1), ")|(") + ")")
		if err != nil {
			return false, err
		}
		matches := pattern.MatchString(found.name)
		if name == "skip-interface" {
			return !matches && !notHosts.MatchString(found.name), nil
		}
		return matches, nil
	case "cidr":
		for _, text := range regexp.MustCompile(`\s*,\s*`).Split(value, -1) {
			cidr, err := netip.ParsePrefix(text)
			if err != nil {
				return false, fmt.Errorf("IP_AUTODETECTION_METHOD %s: %w", method, err)
			}
			if cidr.Contains(found.address.Addr()) {
				return true, nil
			}
		}
		return false, nil
	}
	return false, fmt.Errorf("the stand-in has no IP_AUTODETECTION_METHOD %q", method)
}
