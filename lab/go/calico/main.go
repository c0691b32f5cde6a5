// Calico stands in for the programs of Calico's images in a lab, where no registry is: the name that it is started by
// says which to be. lab/README.md says in what it differs from Calico.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

var programs = map[string]func(context.Context, []string) error{
	"install":          install,     // in calico/cni: lays plugins, conflist and kubeconfig down on the host
	"calico":           plugin,      // the CNI plugin, on the host
	"calico-ipam":      ipamPlugin,  // in calico/cni, called with -upgrade, and on the host
	"calico-node":      node,        // in calico/node
	"kube-controllers": controllers, // in calico/kube-controllers
	"check-status":     checkStatus, // its probes
	"calico-typha":     typha,       // in calico/typha
}

func main() {
	log.SetFlags(log.LstdFlags | log.Lmicroseconds)
	name := filepath.Base(os.Args[0])
	program, ok := programs[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "calico: no program %q\n", name)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := program(ctx, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}
