package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	authentication "k8s.io/api/authentication/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

const (
	pluginsInImage = "/opt/cni/bin"
	pluginsOnHost  = "/host/opt/cni/bin"
	confOnHost     = "/host/etc/cni/net.d"
	tokenLifetime  = 24 * time.Hour
)

// install puts the plugins of the image, the conflist and the plugin's credentials on the host.
func install(ctx context.Context, _ []string) error {
	plugins, err := os.ReadDir(pluginsInImage)
	if err != nil {
		return err
	}
	written := map[string]string{} // program in the image -> its file on the host
	for _, entry := range plugins {
		if entry.Name() == "install" {
			continue
		}
		if err := copyProgram(entry.Name(), written); err != nil {
			return err
		}
		log.Printf("Installed %s/%s", pluginsOnHost, entry.Name())
	}
	if err := writeKubeconfig(ctx); err != nil {
		return err
	}
	text, err := conflist(os.Getenv)
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(confOnHost, os.Getenv("CNI_CONF_NAME")), text, 0o600)
}

// copyProgram replaces a plugin on the host, unless it is the same: one that runs keeps its file. What is one program by
// several names in the image is one file with several names on the host.
func copyProgram(name string, written map[string]string) error {
	source, err := filepath.EvalSymlinks(filepath.Join(pluginsInImage, name))
	if err != nil {
		return err
	}
	target := filepath.Join(pluginsOnHost, name)
	if same, ok := written[source]; ok {
		return linkFile(same, target)
	}
	written[source] = target
	content, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(target); err == nil && bytes.Equal(old, content) {
		return nil
	}
	return replaceFile(target, content, 0o755)
}

// conflist is the template of the environment with its __NAMES__ filled in.
func conflist(environment func(string) string) ([]byte, error) {
	values := strings.NewReplacer(
		"__KUBERNETES_NODE_NAME__", environment("KUBERNETES_NODE_NAME"),
		"__KUBECONFIG_FILEPATH__", environmentOr(environment, "CNI_NET_DIR", "/etc/cni/net.d")+"/calico-kubeconfig",
		"__CNI_MTU__", environmentOr(environment, "CNI_MTU", "1500"),
		"__KUBERNETES_SERVICE_HOST__", environment("KUBERNETES_SERVICE_HOST"),
		"__KUBERNETES_SERVICE_PORT__", environment("KUBERNETES_SERVICE_PORT"),
	)
	text := []byte(values.Replace(environment("CNI_NETWORK_CONFIG")))
	if !json.Valid(text) {
		return nil, fmt.Errorf("CNI_NETWORK_CONFIG is not JSON once its values are in")
	}
	return text, nil
}

func environmentOr(environment func(string) string, name, otherwise string) string {
	if value := environment(name); value != "" {
		return value
	}
	return otherwise
}

// writeKubeconfig gets a token of the plugin's own service account, which the agent renews.
func writeKubeconfig(ctx context.Context) error {
	config, err := rest.InClusterConfig()
	if err != nil {
		return err
	}
	if err := rest.LoadTLSFiles(config); err != nil {
		return err
	}
	calico, err := connect(config)
	if err != nil {
		return err
	}
	seconds := int64(tokenLifetime / time.Second)
	request := &authentication.TokenRequest{Spec: authentication.TokenRequestSpec{ExpirationSeconds: &seconds}}
	granted, err := calico.kube.CoreV1().ServiceAccounts("kube-system").CreateToken(
		ctx, "calico-cni-plugin", request, meta.CreateOptions{})
	if err != nil {
		return err
	}
	endpoint := net.JoinHostPort(os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"))
	text := fmt.Sprintf(`# Kubeconfig file for Calico CNI plugin.
apiVersion: v1
kind: Config
clusters:
- name: local
  cluster:
    server: https://%s
    certificate-authority-data: %s
users:
- name: calico
  user:
    token: %s
contexts:
- name: calico-context
  context:
    cluster: local
    user: calico
current-context: calico-context
`, endpoint, base64.StdEncoding.EncodeToString(config.CAData), granted.Status.Token)
	return replaceFile(filepath.Join(confOnHost, "calico-kubeconfig"), []byte(text), 0o600)
}

// linkFile gives a file another name; to put a link in the place of one to the same file does nothing.
func linkFile(file, name string) error {
	is, err := os.Stat(file)
	if err != nil {
		return err
	}
	if old, err := os.Stat(name); err == nil && os.SameFile(is, old) {
		return nil
	}
	if err := os.Link(file, name+".tmp"); err != nil {
		return err
	}
	return os.Rename(name+".tmp", name)
}

// replaceFile never shows a half-written file to a reader.
func replaceFile(path string, content []byte, mode os.FileMode) error {
	temporary := path + ".tmp"
	if err := os.WriteFile(temporary, content, mode); err != nil {
		return err
	}
	if err := os.Chmod(temporary, mode); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
