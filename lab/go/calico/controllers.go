package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"slices"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
)

const (
	statusFile = "/tmp/status"
	rounds     = 5 * time.Second
)

// controllers is the node controller alone: what deleted nodes had of the pools is given back.
func controllers(ctx context.Context, _ []string) error {
	calico, err := connectInCluster()
	if err != nil {
		return err
	}
	for {
		status := "Ready"
		if err := calico.forgetNodes(ctx); err != nil && ctx.Err() == nil {
			log.Print(err)
			status = err.Error()
		}
		if err := replaceFile(statusFile, []byte(status), 0o644); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(rounds):
		}
	}
}

func checkStatus(context.Context, []string) error {
	status, err := os.ReadFile(statusFile)
	if err == nil && string(status) != "Ready" {
		err = fmt.Errorf("%s", status)
	}
	return err
}

func (c *cluster) forgetNodes(ctx context.Context) error {
	affinities, err := c.affinities.list(ctx)
	if err != nil {
		return err
	}
	// Read after them: a node that is new may have a block already.
	nodes, err := c.nodes.list(ctx)
	if err != nil {
		return err
	}
	for _, affinity := range affinities {
		gone := !slices.ContainsFunc(nodes, func(node core.Node) bool { return node.Name == affinity.Spec.Node })
		if affinity.Spec.Type == "host" && gone {
			if err := c.forgetBlock(ctx, affinity); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *cluster) forgetBlock(ctx context.Context, affinity blockAffinity) error {
	block, err := c.blocks.get(ctx, dashed(affinity.Spec.CIDR))
	if err != nil && !errors.IsNotFound(err) {
		return err
	}
	if err == nil {
		for _, given := range block.Spec.Attributes {
			if err := (ipam{c, affinity.Spec.Node}).release(ctx, given.Handle); err != nil {
				return err
			}
		}
		if err := c.blocks.delete(ctx, block.Name); err != nil && !errors.IsNotFound(err) {
			return err
		}
	}
	log.Printf("Node %s is gone: block %s is free", affinity.Spec.Node, affinity.Spec.CIDR)
	return c.affinities.delete(ctx, affinity.Name)
}
