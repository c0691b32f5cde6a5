package main

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/hostgw"
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/subnet/kube"
	"github.com/flannel-io/flannel/pkg/trafficmngr/iptables"
	"github.com/spf13/cobra"
)

// As K3s sets them; the resyncs are in seconds.
const (
	annotations        = "flannel.alpha.coreos.com"
	masqueradeResync   = 60
	forwardResync      = 50
	noRandomFully      = false
	setNodeUnavailable = false
)

type flannelOptions struct {
	kubeconfig, netConf, node, iface, subnetFile string
}

func newFlanneldCommand() *cobra.Command {
	var o flannelOptions
	c := &cobra.Command{
		Use:   "flanneld",
		Short: "Run Flannel with its leases in the nodes' annotations, as K3s embeds it",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return runFlannel(ctx, o)
		},
	}
	c.Flags().StringVar(&o.kubeconfig, "kubeconfig", "", "credentials for the API server")
	c.Flags().StringVar(&o.netConf, "net-conf", "", "Flannel's net-conf.json")
	c.Flags().StringVar(&o.node, "node", "", "this node's name")
	c.Flags().StringVar(&o.iface, "iface", "", "interface for traffic between nodes")
	c.Flags().StringVar(&o.subnetFile, "subnet-file", "/run/flannel/subnet.env", "written when the network is up")
	for _, name := range []string{"kubeconfig", "net-conf", "node", "iface"} {
		c.MarkFlagRequired(name)
	}
	return c
}

func runFlannel(ctx context.Context, o flannelOptions) error {
	os.Setenv("NODE_NAME", o.node)
	leases, err := kube.NewSubnetManager(ctx, "", o.kubeconfig, annotations, o.netConf, setNodeUnavailable)
	if err != nil {
		return err
	}
	config, err := leases.GetNetworkConfig(ctx)
	if err != nil {
		return err
	}
	family, err := ipmatch.GetIPFamily(config.EnableIPv4, config.EnableIPv6)
	if err != nil {
		return err
	}
	external, err := ipmatch.LookupExtIface(o.iface, "", "", family, ipmatch.PublicIPOpts{})
	if err != nil {
		return err
	}
	overlay, err := backend.NewManager(ctx, leases, external).GetBackend(config.BackendType)
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	network, err := overlay.RegisterNetwork(ctx, &running, config)
	if err != nil {
		return err
	}
	rules := &iptables.IPTablesManager{}
	if err := rules.Init(ctx); err != nil {
		return err
	}
	var none4 ip.IP4Net
	var none6 ip.IP6Net
	err = rules.SetupAndEnsureMasqRules(ctx, config.Network, none4, none4, config.IPv6Network, none6, none6,
		network.Lease(), masqueradeResync, noRandomFully)
	if err != nil {
		return err
	}
	rules.SetupAndEnsureForwardRules(ctx, config.Network, config.IPv6Network, forwardResync)
	lease := network.Lease()
	if err := leases.HandleSubnetFile(o.subnetFile, config, true, lease.Subnet, lease.IPv6Subnet, network.MTU()); err != nil {
		return err
	}
	running.Add(1)
	go func() {
		defer running.Done()
		network.Run(ctx)
	}()
	if err := leases.CompleteLease(ctx, lease, &running); err != nil {
		return err
	}
	running.Wait()
	return nil
}
