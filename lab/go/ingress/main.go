// Ingress stands in for ingress-nginx's controller in a lab, where no registry is: Debian's nginx, kept to what the
// cluster's Ingresses say. lab/README.md says in what it differs from ingress-nginx.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

const (
	directory = "/tmp/nginx"
	program   = "/usr/sbin/nginx"
	settle    = 200 * time.Millisecond
	between   = time.Second // two reloads
)

type options struct {
	class, controllerClass, configMap, electionID string
	webhook, webhookCertificate, webhookKey       string
	withoutClass, internalAddresses, updateStatus bool
	httpPort, httpsPort, healthPort, statusPort   int
	grace, graceAfter, statusInterval             int // seconds
}

func main() {
	if filepath.Base(os.Args[0]) == "wait-shutdown" {
		waitShutdown()
		return
	}
	// The image's init is given the command, as its first argument.
	arguments := os.Args[1:]
	if len(arguments) > 0 && filepath.Base(arguments[0]) == "nginx-ingress-controller" {
		arguments = arguments[1:]
	}
	o, err := parse(arguments)
	if err == nil {
		err = run(o)
	}
	if err != nil {
		klog.ErrorS(err, "Controller ends")
		os.Exit(1)
	}
}

// parse takes ingress-nginx's own arguments, with its defaults; one that is not known is an error, as there.
func parse(arguments []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("nginx-ingress-controller", flag.ContinueOnError)
	flags.StringVar(&o.class, "ingress-class", "nginx", "")
	flags.StringVar(&o.controllerClass, "controller-class", "k8s.io/ingress-nginx", "")
	flags.StringVar(&o.configMap, "configmap", "", "namespace/name")
	flags.StringVar(&o.electionID, "election-id", "ingress-controller-leader", "")
	flags.StringVar(&o.webhook, "validating-webhook", "", "address")
	flags.StringVar(&o.webhookCertificate, "validating-webhook-certificate", "", "file")
	flags.StringVar(&o.webhookKey, "validating-webhook-key", "", "file")
	flags.BoolVar(&o.withoutClass, "watch-ingress-without-class", false, "")
	flags.BoolVar(&o.internalAddresses, "report-node-internal-ip-address", false, "")
	flags.BoolVar(&o.updateStatus, "update-status", true, "")
	flags.IntVar(&o.httpPort, "http-port", 80, "")
	flags.IntVar(&o.httpsPort, "https-port", 443, "")
	flags.IntVar(&o.healthPort, "healthz-port", 10254, "")
	flags.IntVar(&o.statusPort, "status-port", statusPort, "")
	flags.IntVar(&o.grace, "shutdown-grace-period", 0, "seconds")
	flags.IntVar(&o.graceAfter, "post-shutdown-grace-period", 10, "seconds")
	flags.IntVar(&o.statusInterval, "status-update-interval", 60, "seconds")
	return o, flags.Parse(arguments)
}

const statusPort = 10246

type controller struct {
	options
	kube    kubernetes.Interface
	known   func() (world, error)
	changed chan struct{}
	current string // what nginx runs
	nginx   *exec.Cmd
	ended   chan error
	ending  atomic.Bool
}

func run(o options) error {
	config, err := rest.InClusterConfig()
	if err != nil {
		return err
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	stopped := make(chan os.Signal, 1)
	signal.Notify(stopped, syscall.SIGTERM, syscall.SIGINT)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	c := &controller{options: o, kube: kube, changed: make(chan struct{}, 1), ended: make(chan error, 1)}
	klog.Infof("NGINX Ingress controller (stand-in of netmend's lab)")
	if err := c.prepare(); err != nil {
		return err
	}
	if err := c.watch(ctx); err != nil {
		return err
	}
	go c.answerProbes()
	if o.webhook != "" {
		go c.answerAdmission()
	}
	if o.updateStatus {
		go c.reportStatus(ctx)
	}
	c.wake()
	for {
		select {
		case <-c.changed:
			// What comes together is worked on together.
			time.Sleep(settle)
			if err := c.sync(); err != nil {
				klog.Error(err)
				time.AfterFunc(between, c.wake)
			}
			time.Sleep(between - settle)
		case err := <-c.ended:
			return fmt.Errorf("nginx ended: %w", err)
		case <-stopped:
			return c.shutDown()
		}
	}
}

// prepare the directory that nginx works in, with the certificate for hosts that have none.
func (c *controller) prepare() error {
	if err := os.MkdirAll(filepath.Join(directory, "ssl"), 0o700); err != nil {
		return err
	}
	pem, err := fakeCertificate()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(directory, "ssl", defaultCertificate), pem, 0o600)
}

// watch keeps what the controller has to know in memory, and says when any of it changed.
func (c *controller) watch(ctx context.Context) error {
	factory := informers.NewSharedInformerFactory(c.kube, 0)
	ingresses, classes := factory.Networking().V1().Ingresses(), factory.Networking().V1().IngressClasses()
	services, secrets, maps := factory.Core().V1().Services(), factory.Core().V1().Secrets(), factory.Core().V1().ConfigMaps()
	endpoints := factory.Discovery().V1().EndpointSlices()
	changed := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { c.wake() },
		UpdateFunc: func(_, _ any) { c.wake() },
		DeleteFunc: func(any) { c.wake() },
	}
	for _, informer := range []cache.SharedIndexInformer{
		ingresses.Informer(), classes.Informer(), services.Informer(), secrets.Informer(), maps.Informer(), endpoints.Informer(),
	} {
		if _, err := informer.AddEventHandler(changed); err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	for kind, ok := range factory.WaitForCacheSync(ctx.Done()) {
		if !ok {
			return fmt.Errorf("%v cannot be watched", kind)
		}
	}
	everything := labels.Everything()
	c.known = func() (w world, err error) {
		var problems [6]error
		w.ingresses, problems[0] = ingresses.Lister().List(everything)
		w.classes, problems[1] = classes.Lister().List(everything)
		w.services, problems[2] = services.Lister().List(everything)
		w.slices, problems[3] = endpoints.Lister().List(everything)
		w.secrets, problems[4] = secrets.Lister().List(everything)
		found, err := maps.Lister().List(everything)
		problems[5] = err
		w.settings = data(found, c.configMap)
		return w, errors.Join(problems[:]...)
	}
	return nil
}

func data(found []*core.ConfigMap, name string) map[string]string {
	for _, one := range found {
		if one.Namespace+"/"+one.Name == name {
			return one.Data
		}
	}
	return nil
}

func (c *controller) wake() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// sync has nginx run with what the cluster says now. A configuration that nginx does not take is not given to it.
func (c *controller) sync() error {
	w, err := c.known()
	if err != nil {
		return err
	}
	wanted := w.configuration(c.options)
	if wanted.text == c.current {
		return nil
	}
	for name, pem := range wanted.files {
		if err := os.WriteFile(filepath.Join(directory, "ssl", name), pem, 0o600); err != nil {
			return err
		}
	}
	endpoints, err := json.Marshal(wanted.backends)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(directory, "backends.json"), endpoints, 0o600); err != nil {
		return err
	}
	next, file := filepath.Join(directory, "next.conf"), filepath.Join(directory, "nginx.conf")
	if err := os.WriteFile(next, []byte(wanted.text), 0o600); err != nil {
		return err
	}
	if said, err := command("-t", "-q", "-c", next).CombinedOutput(); err != nil {
		return fmt.Errorf("Error: %w\n%s", err, strings.TrimSpace(string(said)))
	}
	if err := os.Rename(next, file); err != nil {
		return err
	}
	if c.nginx == nil {
		err = c.start(file)
	} else {
		err = c.nginx.Process.Signal(syscall.SIGHUP)
	}
	if err != nil {
		return err
	}
	c.current = wanted.text
	klog.Infof("Backend successfully reloaded")
	return nil
}

func (c *controller) start(file string) error {
	c.nginx = command("-c", file, "-g", "daemon off;")
	c.nginx.Stdout, c.nginx.Stderr = os.Stdout, os.Stderr
	if err := c.nginx.Start(); err != nil {
		return err
	}
	go func() { c.ended <- c.nginx.Wait() }()
	return nil
}

func command(arguments ...string) *exec.Cmd {
	return exec.Command(program, append([]string{"-p", directory, "-e", "stderr"}, arguments...)...)
}

// shutDown goes on serving for the grace period: what sends requests here is told meanwhile that it should not.
func (c *controller) shutDown() error {
	c.ending.Store(true)
	klog.InfoS("Received SIGTERM, shutting down")
	for deadline := time.After(time.Duration(c.grace) * time.Second); ; {
		select {
		case <-c.changed:
			time.Sleep(settle)
			if err := c.sync(); err != nil {
				klog.Error(err)
			}
			continue
		case <-deadline:
		}
		break
	}
	if c.nginx != nil {
		klog.InfoS("Stopping NGINX process")
		if err := c.nginx.Process.Signal(syscall.SIGQUIT); err != nil {
			return err
		}
		<-c.ended
		klog.InfoS("NGINX process has stopped")
	}
	time.Sleep(time.Duration(c.graceAfter) * time.Second)
	return nil
}

// answerProbes says whether nginx serves, on the port for that; not while it shuts down.
func (c *controller) answerProbes() {
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if c.ending.Load() {
			http.Error(w, "the ingress controller is shutting down", http.StatusInternalServerError)
			return
		}
		answer, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz", c.statusPort))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer answer.Body.Close()
		w.WriteHeader(answer.StatusCode)
		io.WriteString(w, "ok")
	})
	klog.Fatal(http.ListenAndServe(fmt.Sprintf(":%d", c.healthPort), nil))
}

// waitShutdown is what the manifest has run before the container is stopped: the controller ends, and nginx after it.
func waitShutdown() {
	if err := syscall.Kill(1, syscall.SIGTERM); err != nil {
		klog.Fatal(err)
	}
	for {
		connection, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", statusPort))
		if err != nil {
			return
		}
		connection.Close()
		time.Sleep(time.Second)
	}
}
