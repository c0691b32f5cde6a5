package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	whole "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// What Calico keeps in the API server, as far as it is read or written here; the names are those of its CRDs.

type ipPool struct {
	meta.TypeMeta   `json:",inline"`
	meta.ObjectMeta `json:"metadata"`
	Spec            struct {
		CIDR        string   `json:"cidr"`
		BlockSize   int      `json:"blockSize,omitempty"`
		IPIPMode    string   `json:"ipipMode,omitempty"`
		VXLANMode   string   `json:"vxlanMode,omitempty"`
		NATOutgoing bool     `json:"natOutgoing,omitempty"`
		Disabled    bool     `json:"disabled,omitempty"`
		AllowedUses []string `json:"allowedUses,omitempty"`
	} `json:"spec"`
}

func (p ipPool) prefix() (netip.Prefix, bool) {
	prefix, err := netip.ParsePrefix(p.Spec.CIDR)
	return prefix, err == nil && prefix.Addr().Is4()
}

func (p ipPool) ipip() bool  { return p.Spec.IPIPMode != "" && p.Spec.IPIPMode != "Never" }
func (p ipPool) vxlan() bool { return p.Spec.VXLANMode != "" && p.Spec.VXLANMode != "Never" }

func (p ipPool) crossSubnet() bool {
	return p.Spec.IPIPMode == "CrossSubnet" || p.Spec.VXLANMode == "CrossSubnet"
}

type blockAffinity struct {
	meta.TypeMeta   `json:",inline"`
	meta.ObjectMeta `json:"metadata"`
	Spec            struct {
		CIDR    string `json:"cidr"`
		Node    string `json:"node"`
		State   string `json:"state"`
		Type    string `json:"type"`
		Deleted string `json:"deleted"`
	} `json:"spec"`
}

func (a blockAffinity) confirmed() bool {
	return a.Spec.State == "confirmed" && a.Spec.Deleted != "true"
}

type ipamBlock struct {
	meta.TypeMeta   `json:",inline"`
	meta.ObjectMeta `json:"metadata"`
	Spec            struct {
		CIDR                        string            `json:"cidr"`
		Affinity                    *string           `json:"affinity,omitempty"`
		AffinityClaimTime           *meta.Time        `json:"affinityClaimTime,omitempty"`
		Allocations                 []*int            `json:"allocations"`
		Attributes                  []allocation      `json:"attributes"`
		Deleted                     bool              `json:"deleted"`
		SequenceNumber              uint64            `json:"sequenceNumber"`
		SequenceNumberForAllocation map[string]uint64 `json:"sequenceNumberForAllocation"`
		StrictAffinity              bool              `json:"strictAffinity"`
		Unallocated                 []int             `json:"unallocated"`
	} `json:"spec"`
}

type allocation struct {
	Handle    string            `json:"handle_id,omitempty"`
	Secondary map[string]string `json:"secondary,omitempty"`
}

type ipamHandle struct {
	meta.TypeMeta   `json:",inline"`
	meta.ObjectMeta `json:"metadata"`
	Spec            struct {
		HandleID string         `json:"handleID"`
		Block    map[string]int `json:"block"`
		Deleted  bool           `json:"deleted"`
	} `json:"spec"`
}

type felixConfiguration struct {
	meta.TypeMeta   `json:",inline"`
	meta.ObjectMeta `json:"metadata"`
	Spec            struct {
		ChainInsertMode             string `json:"chainInsertMode,omitempty"`
		DefaultEndpointToHostAction string `json:"defaultEndpointToHostAction,omitempty"`
		IPIPMTU                     int    `json:"ipipMTU,omitempty"`
		VXLANMTU                    int    `json:"vxlanMTU,omitempty"`
		MTUIfacePattern             string `json:"mtuIfacePattern,omitempty"`
		ProgramClusterRoutes        string `json:"programClusterRoutes,omitempty"`
	} `json:"spec"`
}

type bgpConfiguration struct {
	meta.TypeMeta   `json:",inline"`
	meta.ObjectMeta `json:"metadata"`
	Spec            struct {
		ASNumber              *int   `json:"asNumber,omitempty"`
		NodeToNodeMeshEnabled *bool  `json:"nodeToNodeMeshEnabled,omitempty"`
		ProgramClusterRoutes  string `json:"programClusterRoutes,omitempty"`
	} `json:"spec"`
}

// collection is one kind of objects; T is how its JSON reads here, and what T has no field for is lost when written.
type collection[T any] struct {
	client   dynamic.ResourceInterface
	resource schema.GroupVersionResource
	kind     string
}

type cluster struct {
	kube       kubernetes.Interface
	dynamic    dynamic.Interface
	pools      collection[ipPool]
	affinities collection[blockAffinity]
	blocks     collection[ipamBlock]
	handles    collection[ipamHandle]
	felix      collection[felixConfiguration]
	bgp        collection[bgpConfiguration]
	nodes      collection[core.Node]
	pods       collection[core.Pod]
	namespaces collection[core.Namespace]
	policies   collection[networking.NetworkPolicy]
}

func connect(config *rest.Config) (*cluster, error) {
	config.QPS, config.Burst = 50, 100
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	crd := schema.GroupVersion{Group: "crd.projectcalico.org", Version: "v1"}
	return &cluster{
		kube:       kube,
		dynamic:    client,
		pools:      of[ipPool](client, crd, "ippools", "IPPool"),
		affinities: of[blockAffinity](client, crd, "blockaffinities", "BlockAffinity"),
		blocks:     of[ipamBlock](client, crd, "ipamblocks", "IPAMBlock"),
		handles:    of[ipamHandle](client, crd, "ipamhandles", "IPAMHandle"),
		felix:      of[felixConfiguration](client, crd, "felixconfigurations", "FelixConfiguration"),
		bgp:        of[bgpConfiguration](client, crd, "bgpconfigurations", "BGPConfiguration"),
		nodes:      of[core.Node](client, core.SchemeGroupVersion, "nodes", "Node"),
		pods:       of[core.Pod](client, core.SchemeGroupVersion, "pods", "Pod"),
		namespaces: of[core.Namespace](client, core.SchemeGroupVersion, "namespaces", "Namespace"),
		policies:   of[networking.NetworkPolicy](client, networking.SchemeGroupVersion, "networkpolicies", "NetworkPolicy"),
	}, nil
}

func connectInCluster() (*cluster, error) {
	config, err := rest.InClusterConfig()
	if err != nil {
		return nil, err
	}
	return connect(config)
}

func of[T any](client dynamic.Interface, version schema.GroupVersion, plural, kind string) collection[T] {
	resource := version.WithResource(plural)
	return collection[T]{client.Resource(resource), resource, kind}
}

func (c collection[T]) get(ctx context.Context, name string) (T, error) {
	object, err := c.client.Get(ctx, name, meta.GetOptions{})
	return read[T](object, err)
}

func (c collection[T]) list(ctx context.Context) ([]T, error) {
	found, err := c.client.List(ctx, meta.ListOptions{})
	if err != nil {
		return nil, err
	}
	items := make([]T, 0, len(found.Items))
	for i := range found.Items {
		item, err := read[T](&found.Items[i], nil)
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	return items, nil
}

func (c collection[T]) create(ctx context.Context, item T) (T, error) {
	object, err := c.write(item)
	if err != nil {
		return item, err
	}
	object, err = c.client.Create(ctx, object, meta.CreateOptions{})
	return read[T](object, err)
}

// update fails with a conflict when the object was changed since it was read.
func (c collection[T]) update(ctx context.Context, item T) (T, error) {
	object, err := c.write(item)
	if err != nil {
		return item, err
	}
	object, err = c.client.Update(ctx, object, meta.UpdateOptions{})
	return read[T](object, err)
}

func (c collection[T]) delete(ctx context.Context, name string) error {
	return c.client.Delete(ctx, name, meta.DeleteOptions{})
}

func (c collection[T]) write(item T) (*unstructured.Unstructured, error) {
	text, err := json.Marshal(item)
	if err != nil {
		return nil, err
	}
	content := map[string]any{}
	// The standard library would make a float of every number.
	if err := whole.Unmarshal(text, &content); err != nil {
		return nil, err
	}
	content["apiVersion"], content["kind"] = c.resource.GroupVersion().String(), c.kind
	return &unstructured.Unstructured{Object: content}, nil
}

func read[T any](object *unstructured.Unstructured, err error) (item T, _ error) {
	if err != nil {
		return item, err
	}
	text, err := object.MarshalJSON()
	if err != nil {
		return item, err
	}
	if err := json.Unmarshal(text, &item); err != nil {
		return item, fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
	}
	return item, nil
}

// annotate sets annotations of a node by its status, which is what Calico's role may write; an empty one goes.
func (c *cluster) annotate(ctx context.Context, node string, annotations map[string]string) error {
	values := map[string]any{}
	for key, value := range annotations {
		values[key] = value
		if value == "" {
			values[key] = nil
		}
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": values}})
	if err != nil {
		return err
	}
	_, err = c.kube.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, patch, meta.PatchOptions{}, "status")
	return err
}

// nodeAddress is the IPv4 prefix that a node's Calico goes by; not there until it has started once.
func nodeAddress(node core.Node) (netip.Prefix, bool) {
	prefix, err := netip.ParsePrefix(node.Annotations[annotationAddress])
	return prefix, err == nil
}

func dashed(text string) string {
	return strings.NewReplacer(".", "-", ":", "-", "/", "-").Replace(text)
}
