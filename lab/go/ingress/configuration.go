package main

import (
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/klog/v2"
)

const (
	annotations        = "nginx.ingress.kubernetes.io/"
	classAnnotation    = "kubernetes.io/ingress.class"
	defaultBackend     = "upstream-default-backend"
	defaultCertificate = "default-fake-certificate.pem"
	catchAll           = "_"
)

// Of a number that the ConfigMap or an annotation may set: what ingress-nginx has where neither does.
var numbers = map[string]int{
	"proxy-connect-timeout":     5,
	"proxy-send-timeout":        60,
	"proxy-read-timeout":        60,
	"proxy-next-upstream-tries": 3,
}

// world is what the controller knows of the cluster, at one moment.
type world struct {
	ingresses []*networking.Ingress
	classes   []*networking.IngressClass
	services  []*core.Service
	slices    []*discovery.EndpointSlice
	secrets   []*core.Secret
	settings  map[string]string // the ConfigMap's data
}

// configuration is what nginx is to be given.
type configuration struct {
	text     string
	files    map[string][]byte // certificates with their keys, by the name that text has for them
	backends []backend         // as /configuration/backends has them
}

type backend struct {
	Name      string     `json:"name"`
	Endpoints []endpoint `json:"endpoints,omitempty"`
}

type endpoint struct {
	Address string `json:"address"`
	Port    string `json:"port"`
}

type server struct {
	host        string
	certificate string // file; empty: the default one
	locations   []location
}

type location struct {
	match     string // as nginx writes it
	ingress   string
	service   string
	port      string
	upstream  string
	endpoints []string
	numbers   map[string]int
	redirect  bool // what comes without TLS
}

// claimed are the Ingresses that are this controller's to serve, the oldest first: of two for one path it has it.
func (w world) claimed(o options) []*networking.Ingress {
	var ours []*networking.Ingress
	for _, ingress := range w.ingresses {
		if w.claims(o, ingress) {
			ours = append(ours, ingress)
		}
	}
	slices.SortFunc(ours, func(a, b *networking.Ingress) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(key(b), key(a)))
	})
	return ours
}

func (w world) claims(o options, ingress *networking.Ingress) bool {
	if name := ingress.Spec.IngressClassName; name != nil {
		return slices.ContainsFunc(w.classes, func(class *networking.IngressClass) bool {
			return class.Name == *name && class.Spec.Controller == o.controllerClass
		})
	}
	if class, ok := ingress.Annotations[classAnnotation]; ok {
		return class == o.class
	}
	return o.withoutClass
}

// configuration of nginx for the Ingresses that are claimed; what is wrong with them is logged.
func (w world) configuration(o options) configuration {
	c := configuration{files: map[string][]byte{}}
	servers := map[string]*server{catchAll: {host: catchAll}}
	for _, ingress := range w.claimed(o) {
		for _, rule := range ingress.Spec.Rules {
			host := cmp.Or(rule.Host, catchAll)
			if servers[host] == nil {
				servers[host] = &server{host: host}
			}
			if servers[host].certificate == "" {
				servers[host].certificate = w.certificate(ingress, host, c.files)
			}
			if rule.HTTP != nil {
				for _, path := range rule.HTTP.Paths {
					servers[host].add(w, ingress, path)
				}
			}
		}
		if backend := ingress.Spec.DefaultBackend; backend != nil {
			servers[catchAll].add(w, ingress, networking.HTTPIngressPath{Path: "/", Backend: *backend})
		}
	}
	c.text = w.render(o, servers, c.files)
	c.backends = backends(servers)
	return c
}

// backends are all upstreams, those without an endpoint, too.
func backends(servers map[string]*server) []backend {
	found := map[string]backend{}
	for _, s := range servers {
		for _, l := range s.locations {
			b := backend{Name: l.upstream}
			for _, text := range l.endpoints {
				if address, port, err := net.SplitHostPort(text); err == nil {
					b.Endpoints = append(b.Endpoints, endpoint{address, port})
				}
			}
			found[l.upstream] = b
		}
	}
	return slices.SortedFunc(maps.Values(found), func(a, b backend) int { return strings.Compare(a.Name, b.Name) })
}

// add what one path of an Ingress says, unless an older one has that path.
func (s *server) add(w world, ingress *networking.Ingress, path networking.HTTPIngressPath) {
	if path.Backend.Service == nil {
		return
	}
	service, port := path.Backend.Service.Name, portName(path.Backend.Service.Port)
	l := location{
		ingress:   key(ingress),
		service:   service,
		port:      port,
		upstream:  fmt.Sprintf("%s-%s-%s", ingress.Namespace, service, port),
		endpoints: w.endpoints(ingress.Namespace, service, path.Backend.Service.Port),
		numbers:   w.numbers(ingress),
		redirect:  w.redirects(ingress, s.certificate != ""),
	}
	for _, match := range matches(path) {
		l.match = match
		if !slices.ContainsFunc(s.locations, func(other location) bool { return other.match == match }) {
			s.locations = append(s.locations, l)
		}
	}
}

// matches are the locations of a path: a prefix /a is /a itself and all below /a/.
func matches(path networking.HTTPIngressPath) []string {
	text := cmp.Or(path.Path, "/")
	switch {
	case path.PathType != nil && *path.PathType == networking.PathTypeExact:
		return []string{"= " + quote(text)}
	case path.PathType != nil && *path.PathType == networking.PathTypePrefix && text != "/":
		text = strings.TrimRight(text, "/")
		return []string{"= " + quote(text), quote(text + "/")}
	}
	return []string{quote(text)}
}

// endpoints are the addresses of pods that are ready, and the ports that these have for a port of a Service.
func (w world) endpoints(namespace, name string, backend networking.ServiceBackendPort) []string {
	at := slices.IndexFunc(w.services, func(s *core.Service) bool { return s.Namespace == namespace && s.Name == name })
	if at < 0 {
		klog.Warningf("Error obtaining Endpoints for Service %q: no object matching key %q in local store",
			namespace+"/"+name, namespace+"/"+name)
		return nil
	}
	found := map[string]bool{}
	for _, port := range w.services[at].Spec.Ports {
		if port.Port != backend.Number && (backend.Name == "" || port.Name != backend.Name) {
			continue
		}
		for _, slice := range w.slices {
			if slice.Namespace == namespace && slice.Labels[discovery.LabelServiceName] == name {
				addAddresses(found, slice, port)
			}
		}
	}
	if len(found) == 0 {
		klog.Warningf("Service %q does not have any active Endpoint.", namespace+"/"+name)
	}
	return slices.Sorted(maps.Keys(found))
}

func addAddresses(found map[string]bool, slice *discovery.EndpointSlice, wanted core.ServicePort) {
	for _, port := range slice.Ports {
		if port.Port == nil || *port.Name != wanted.Name || *port.Protocol != core.ProtocolTCP {
			continue
		}
		for _, endpoint := range slice.Endpoints {
			if endpoint.Conditions.Ready != nil && !*endpoint.Conditions.Ready {
				continue
			}
			for _, address := range endpoint.Addresses {
				found[net.JoinHostPort(address, strconv.Itoa(int(*port.Port)))] = true
			}
		}
	}
}

// certificate is the file of a host's certificate, which is put into files; empty where the default one has to do.
func (w world) certificate(ingress *networking.Ingress, host string, files map[string][]byte) string {
	for _, entry := range ingress.Spec.TLS {
		if !slices.Contains(entry.Hosts, host) && len(entry.Hosts) > 0 {
			continue
		}
		name := ingress.Namespace + "/" + entry.SecretName
		at := slices.IndexFunc(w.secrets, func(s *core.Secret) bool { return s.Namespace+"/"+s.Name == name })
		if at < 0 {
			klog.Warningf("Error getting SSL certificate %q: local SSL certificate %s was not found. Using default certificate",
				name, name)
			return ""
		}
		pem, err := checked(w.secrets[at], host)
		if err != nil {
			klog.Warningf("Unexpected error validating SSL certificate %q for server %q: %v", name, host, err)
			klog.Warning("Using default certificate")
			return ""
		}
		file := ingress.Namespace + "-" + entry.SecretName + ".pem"
		files[file] = pem
		return file
	}
	return ""
}

// checked is a Secret's certificate and key, if they belong together and are for the host.
func checked(secret *core.Secret, host string) ([]byte, error) {
	certificate, private := secret.Data[core.TLSCertKey], secret.Data[core.TLSPrivateKeyKey]
	pair, err := tls.X509KeyPair(certificate, private)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil, err
	}
	return slices.Concat(certificate, []byte("\n"), private), leaf.VerifyHostname(host)
}

// numbers of an Ingress: its annotations, else the ConfigMap, else those of ingress-nginx.
func (w world) numbers(ingress *networking.Ingress) map[string]int {
	found := map[string]int{}
	for name, usual := range numbers {
		found[name] = usual
		for _, text := range []string{ingress.Annotations[annotations+name], w.settings[name]} {
			if text == "" {
				continue
			}
			number, err := strconv.Atoi(text)
			if err == nil && number >= 0 {
				found[name] = number
				break
			}
			klog.Warningf("Ingress %q: %s is %q, which is no number", key(ingress), name, text)
		}
	}
	return found
}

// redirects: whether what comes without TLS is sent to where it is used.
func (w world) redirects(ingress *networking.Ingress, certificate bool) bool {
	if ingress.Annotations[annotations+"force-ssl-redirect"] == "true" {
		return true
	}
	return certificate && cmp.Or(ingress.Annotations[annotations+"ssl-redirect"], w.settings["ssl-redirect"], "true") == "true"
}

func (w world) render(o options, servers map[string]*server, files map[string][]byte) string {
	var text strings.Builder
	fmt.Fprintf(&text, head, directory, o.statusPort)
	listen := ""
	if w.settings["use-proxy-protocol"] == "true" {
		listen = " proxy_protocol"
		text.WriteString("    real_ip_header proxy_protocol;\n    set_real_ip_from 0.0.0.0/0;\n")
	}
	for _, host := range slices.Sorted(maps.Keys(servers)) {
		s, more := servers[host], listen
		if host == catchAll {
			more = " default_server" + more
		}
		file := cmp.Or(s.certificate, defaultCertificate)
		fmt.Fprintf(&text, serverHead, host, quote(host), o.httpPort, more, o.httpsPort, more,
			sha256.Sum256(files[file]), directory, file, directory, file)
		for _, l := range s.locations {
			l.write(&text)
		}
		if !slices.ContainsFunc(s.locations, func(l location) bool { return l.match == quote("/") }) {
			text.WriteString(nobody)
		}
		if host == catchAll {
			text.WriteString(healthy)
		}
		text.WriteString("    }\n")
	}
	writeUpstreams(&text, servers)
	text.WriteString("}\n")
	return text.String()
}

func (l location) write(text *strings.Builder) {
	namespace, name, _ := strings.Cut(l.ingress, "/")
	fmt.Fprintf(text, locationHead, l.match, namespace, name, l.service, l.port, l.upstream)
	if l.redirect {
		text.WriteString("            if ($scheme = http) { return 308 https://$host$request_uri; }\n")
	}
	if len(l.endpoints) == 0 {
		text.WriteString("            return 503;\n        }\n")
		return
	}
	fmt.Fprintf(text, pass, l.numbers["proxy-connect-timeout"], l.numbers["proxy-send-timeout"],
		l.numbers["proxy-read-timeout"], l.numbers["proxy-next-upstream-tries"], l.upstream)
}

// writeUpstreams names each endpoint as often as it may be tried: ingress-nginx tries the same one again where there is
// no other, and nginx by itself does not.
func writeUpstreams(text *strings.Builder, servers map[string]*server) {
	tries, endpoints := map[string]int{}, map[string][]string{}
	for _, s := range servers {
		for _, l := range s.locations {
			if len(l.endpoints) > 0 {
				endpoints[l.upstream] = l.endpoints
				tries[l.upstream] = max(tries[l.upstream], l.numbers["proxy-next-upstream-tries"], 1)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(endpoints)) {
		fmt.Fprintf(text, "    upstream %s {\n", quote(name))
		for range (tries[name] + len(endpoints[name]) - 1) / len(endpoints[name]) {
			for _, endpoint := range endpoints[name] {
				fmt.Fprintf(text, "        server %s max_fails=0;\n", endpoint)
			}
		}
		text.WriteString("    }\n")
	}
}

func portName(port networking.ServiceBackendPort) string {
	return cmp.Or(port.Name, strconv.Itoa(int(port.Number)))
}

func key(ingress *networking.Ingress) string { return ingress.Namespace + "/" + ingress.Name }

// quote for nginx.
func quote(text string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text) + `"`
}

const head = `worker_processes 1;
worker_rlimit_nofile 65536;
worker_shutdown_timeout 240s;
pid %[1]s/nginx.pid;
error_log stderr notice;
events {
    worker_connections 4096;
    multi_accept on;
}
http {
    log_format upstreaminfo '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" '
        '"$http_user_agent" $request_length $request_time [$proxy_upstream_name] [] $upstream_addr '
        '$upstream_response_length $upstream_response_time $upstream_status $req_id';
    access_log /dev/stdout upstreaminfo;
    client_body_temp_path %[1]s/body;
    proxy_temp_path %[1]s/proxy;
    fastcgi_temp_path %[1]s/fastcgi;
    uwsgi_temp_path %[1]s/uwsgi;
    scgi_temp_path %[1]s/scgi;
    server_tokens off;
    keepalive_timeout 75s;
    proxy_headers_hash_max_size 512;
    server_names_hash_bucket_size 128;
    map $http_upgrade $connection_upgrade {
        default upgrade;
        '' close;
    }
    map $http_x_request_id $req_id {
        default $http_x_request_id;
        '' $request_id;
    }
    ssl_protocols TLSv1.2 TLSv1.3;
    server {
        listen 127.0.0.1:%[2]d;
        access_log off;
        location = /healthz { return 200; }
        location = /configuration/backends {
            default_type application/json;
            alias %[1]s/backends.json;
        }
        location / { return 404; }
    }
`

const serverHead = `    ## start server %s
    server {
        server_name %s;
        listen %d%s;
        listen %d%s ssl;
        # PEM sha: %x
        ssl_certificate %s/ssl/%s;
        ssl_certificate_key %s/ssl/%s;
        set $proxy_upstream_name "` + defaultBackend + `";
`

const locationHead = `        location %s {
            # %s/%s, Service %s port %s
            set $proxy_upstream_name "%s";
`

const pass = `            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header X-Request-ID $req_id;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header X-Forwarded-Port $server_port;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Scheme $scheme;
            proxy_set_header X-Scheme $scheme;
            proxy_set_header X-Original-Forwarded-For $http_x_forwarded_for;
            proxy_set_header Proxy "";
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_connect_timeout %ds;
            proxy_send_timeout %ds;
            proxy_read_timeout %ds;
            proxy_next_upstream error timeout;
            proxy_next_upstream_timeout 0;
            proxy_next_upstream_tries %d;
            proxy_pass http://%s;
            proxy_redirect off;
        }
`

const nobody = `        location / { return 404; }
`

const healthy = `        location = /healthz {
            access_log off;
            return 200;
        }
`
