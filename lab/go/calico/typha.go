package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"time"

	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	typhaAddress       = ":5473"
	typhaHealthAddress = "localhost:9098"
	dialTime           = 5 * time.Second
)

// typha holds the nodes' connections and passes nothing on: they ask the API themselves, once they have reached it.
func typha(ctx context.Context, _ []string) error {
	listener, err := net.Listen("tcp", typhaAddress)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { listener.Close() })
	go answerProbes(typhaHealthAddress, func() bool { return true })
	log.Print("Typha started (stand-in for netmend's lab)")
	for {
		connection, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer connection.Close()
			_, _ = io.Copy(io.Discard, connection)
		}()
	}
}

// askTypha connects to one of Typha's pods where the environment names its Service, and ends the agent with the
// connection, as Felix does; the kubelet starts it anew.
func (c *cluster) askTypha(ctx context.Context, gone func(error)) error {
	service := environmentOr(os.Getenv, "FELIX_TYPHAK8SSERVICENAME", "none")
	if service == "none" {
		return nil
	}
	namespace := environmentOr(os.Getenv, "FELIX_TYPHAK8SNAMESPACE", "kube-system")
	for {
		connection, err := c.dialTypha(ctx, namespace, service)
		if err == nil {
			log.Printf("Connected to Typha at %s", connection.RemoteAddr())
			go func() {
				_, err := connection.Read(make([]byte, 1))
				gone(fmt.Errorf("connection to Typha failed: %w", err))
			}()
			return nil
		}
		log.Printf("Failed to connect to Typha: %v", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(giveAway):
		}
	}
}

func (c *cluster) dialTypha(ctx context.Context, namespace, service string) (net.Conn, error) {
	slices, err := c.kube.DiscoveryV1().EndpointSlices(namespace).List(ctx, meta.ListOptions{
		LabelSelector: discovery.LabelServiceName + "=" + service,
	})
	if err != nil {
		return nil, err
	}
	var addresses []string
	for _, slice := range slices.Items {
		for _, endpoint := range slice.Endpoints {
			if len(slice.Ports) > 0 && (endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready) {
				addresses = append(addresses, fmt.Sprintf("%s:%d", endpoint.Addresses[0], *slice.Ports[0].Port))
			}
		}
	}
	problems := []error{fmt.Errorf("of %d ready endpoints of %s/%s", len(addresses), namespace, service)}
	for _, index := range rand.Perm(len(addresses)) {
		connection, err := net.DialTimeout("tcp", addresses[index], dialTime)
		if err == nil {
			return connection, nil
		}
		problems = append(problems, err)
	}
	return nil, errors.Join(problems...)
}

// answerProbes says whether the program is ready; whoever answers is live.
func answerProbes(address string, ready func() bool) {
	http.HandleFunc("/readiness", func(w http.ResponseWriter, _ *http.Request) {
		if !ready() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	http.HandleFunc("/liveness", func(http.ResponseWriter, *http.Request) {})
	log.Fatal(http.ListenAndServe(address, nil))
}
