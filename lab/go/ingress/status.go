package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

// reportStatus writes the addresses of the nodes with a controller into the Ingresses; one controller of all does.
func (c *controller) reportStatus(ctx context.Context) {
	namespace, name := os.Getenv("POD_NAMESPACE"), os.Getenv("POD_NAME")
	lock, err := resourcelock.New(resourcelock.LeasesResourceLock, namespace, c.electionID,
		c.kube.CoreV1(), c.kube.CoordinationV1(), resourcelock.ResourceLockConfig{Identity: name})
	if err != nil {
		klog.Fatal(err)
	}
	lead := func(ctx context.Context) {
		for ctx.Err() == nil {
			if err := c.writeStatus(ctx, namespace, name); err != nil {
				klog.Warningf("error updating ingress rule: %v", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Duration(c.statusInterval) * time.Second):
			}
		}
	}
	for ctx.Err() == nil {
		leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{
			Lock: lock, LeaseDuration: 30 * time.Second, RenewDeadline: 15 * time.Second, RetryPeriod: 7500 * time.Millisecond,
			Callbacks: leaderelection.LeaderCallbacks{OnStartedLeading: lead, OnStoppedLeading: func() {}},
		})
	}
}

func (c *controller) writeStatus(ctx context.Context, namespace, name string) error {
	self, err := c.kube.CoreV1().Pods(namespace).Get(ctx, name, meta.GetOptions{})
	if err != nil {
		return err
	}
	same := meta.ListOptions{LabelSelector: labels.SelectorFromSet(withoutRevision(self.Labels)).String()}
	pods, err := c.kube.CoreV1().Pods(namespace).List(ctx, same)
	if err != nil {
		return err
	}
	nodes, err := c.kube.CoreV1().Nodes().List(ctx, meta.ListOptions{})
	if err != nil {
		return err
	}
	w, err := c.known()
	if err != nil {
		return err
	}
	wanted := addresses(pods.Items, nodes.Items, c.internalAddresses)
	for _, ingress := range w.claimed(c.options) {
		if reflect.DeepEqual(ingress.Status.LoadBalancer.Ingress, wanted) {
			continue
		}
		klog.InfoS("updating Ingress status", "namespace", ingress.Namespace, "ingress", ingress.Name, "newValue", wanted)
		changed := ingress.DeepCopy()
		changed.Status.LoadBalancer.Ingress = wanted
		if _, err := c.kube.NetworkingV1().Ingresses(ingress.Namespace).UpdateStatus(ctx, changed, meta.UpdateOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// withoutRevision leaves out what a pod has for the version of its template.
func withoutRevision(all map[string]string) map[string]string {
	kept := map[string]string{}
	for name, value := range all {
		if !slices.Contains([]string{"pod-template-hash", "controller-revision-hash", "pod-template-generation"}, name) {
			kept[name] = value
		}
	}
	return kept
}

// addresses of the nodes on which a controller is ready: the external ones, where there are any and internal is not asked for.
func addresses(pods []core.Pod, nodes []core.Node, internal bool) []networking.IngressLoadBalancerIngress {
	var found []networking.IngressLoadBalancerIngress
	for _, node := range nodes {
		if !slices.ContainsFunc(pods, func(pod core.Pod) bool { return pod.Spec.NodeName == node.Name && ready(pod) }) {
			continue
		}
		own := of(node, core.NodeExternalIP)
		if internal || len(own) == 0 {
			own = of(node, core.NodeInternalIP)
		}
		for _, address := range own {
			found = append(found, networking.IngressLoadBalancerIngress{IP: address})
		}
	}
	slices.SortFunc(found, func(a, b networking.IngressLoadBalancerIngress) int { return strings.Compare(a.IP, b.IP) })
	return found
}

func ready(pod core.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(condition core.PodCondition) bool {
		return condition.Type == core.PodReady && condition.Status == core.ConditionTrue
	})
}

func of(node core.Node, kind core.NodeAddressType) (found []string) {
	for _, address := range node.Status.Addresses {
		if address.Type == kind {
			found = append(found, address.Address)
		}
	}
	return found
}

// fakeCertificate is what hosts without one of their own get, named as ingress-nginx names it, with its key.
func fakeCertificate() ([]byte, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "Kubernetes Ingress Controller Fake Certificate", Organization: []string{"Acme Co"}},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(365 * 24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:     []string{"ingress.local"},
	}
	certificate, err := x509.CreateCertificate(rand.Reader, &template, &template, &private.PublicKey, private)
	if err != nil {
		return nil, err
	}
	key, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		return nil, err
	}
	return append(
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key})...,
	), nil
}
