package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
)

const (
	ingressOfAPI = `
metadata: {namespace: keybuzz, name: api}
spec:
  ingressClassName: nginx
  rules:
    - host: api.example.org
      http:
        paths: [{path: /, pathType: Prefix, backend: {service: {name: api, port: {name: http}}}}]
`
	serviceOfAPI = `
metadata: {namespace: keybuzz, name: api}
spec: {ports: [{name: http, port: 80}, {name: metrics, port: 9090}]}
`
	sliceOfAPI = `
metadata: {namespace: keybuzz, name: api-1, labels: {kubernetes.io/service-name: api}}
ports: [{name: http, port: 8080, protocol: TCP}, {name: metrics, port: 9090, protocol: TCP}]
endpoints:
  - {addresses: [10.42.1.2], conditions: {ready: true}}
  - {addresses: [10.42.2.2], conditions: {ready: false}}
`
)

func read[T any](t *testing.T, text string) *T {
	t.Helper()
	item := new(T)
	if err := yaml.Unmarshal([]byte(text), item); err != nil {
		t.Fatal(err)
	}
	return item
}

func served(t *testing.T) world {
	class := read[networking.IngressClass](t, "{metadata: {name: nginx}, spec: {controller: k8s.io/ingress-nginx}}")
	return world{
		ingresses: []*networking.Ingress{read[networking.Ingress](t, ingressOfAPI)},
		classes:   []*networking.IngressClass{class},
		services:  []*core.Service{read[core.Service](t, serviceOfAPI)},
		slices:    []*discovery.EndpointSlice{read[discovery.EndpointSlice](t, sliceOfAPI)},
		settings:  map[string]string{},
	}
}

func usual(t *testing.T) options {
	o, err := parse([]string{"--ingress-class=nginx"})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// block is the text of a server or an upstream.
func block(text, head string) string {
	_, after, _ := strings.Cut(text, "\n    "+head)
	inside, _, _ := strings.Cut(after, "\n    }\n")
	return inside
}

func expect(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains(text, line) {
			t.Errorf("no %q in:\n%s", line, text)
		}
	}
}

func TestAPodThatIsReadyIsTriedThreeTimesAtItsOwnAddress(t *testing.T) {
	text := served(t).configuration(usual(t)).text
	upstream := block(text, `upstream "keybuzz-api-http"`)
	if strings.Count(upstream, "server ") != 3 || strings.Count(upstream, "server 10.42.1.2:8080 max_fails=0;") != 3 {
		t.Error(upstream)
	}
	expect(t, block(text, "## start server api.example.org"), "proxy_connect_timeout 5s;", "proxy_read_timeout 60s;",
		"proxy_next_upstream error timeout;", "proxy_next_upstream_tries 3;", "proxy_pass http://keybuzz-api-http;")
}

func TestEachOfTwoPodsIsNamedOftenEnoughForThreeTries(t *testing.T) {
	w := served(t)
	yes := true
	w.slices[0].Endpoints[1].Conditions.Ready = &yes
	upstream := block(w.configuration(usual(t)).text, `upstream "keybuzz-api-http"`)
	if strings.Count(upstream, "10.42.1.2:8080") != 2 || strings.Count(upstream, "10.42.2.2:8080") != 2 {
		t.Error(upstream)
	}
}

func TestWithoutPodsThatAreReadyTheAnswerIs503AtOnce(t *testing.T) {
	for what, change := range map[string]func(*world){
		"no endpoint is ready": func(w *world) { w.slices[0].Endpoints = w.slices[0].Endpoints[1:] },
		"no Service":           func(w *world) { w.services = nil },
		"no such port":         func(w *world) { w.services[0].Spec.Ports = w.services[0].Spec.Ports[1:] },
	} {
		w := served(t)
		change(&w)
		text := w.configuration(usual(t)).text
		if location := block(text, "## start server api.example.org"); !strings.Contains(location, "return 503;") {
			t.Error(what, location)
		}
		if strings.Contains(text, "upstream \"") {
			t.Error(what, "has an upstream")
		}
	}
}

func TestAnIngressOfAnotherClassIsLeftToThe404OfTheDefaultServer(t *testing.T) {
	for what, change := range map[string]func(*networking.Ingress){
		"a class that is not there": func(i *networking.Ingress) { name := "traefik"; i.Spec.IngressClassName = &name },
		"no class":                  func(i *networking.Ingress) { i.Spec.IngressClassName = nil },
		"an annotation of another": func(i *networking.Ingress) {
			i.Spec.IngressClassName, i.Annotations = nil, map[string]string{classAnnotation: "traefik"}
		},
	} {
		w := served(t)
		change(w.ingresses[0])
		text := w.configuration(usual(t)).text
		if strings.Contains(text, "api.example.org") {
			t.Error(what)
		}
		expect(t, block(text, "## start server _"), "listen 80 default_server;", "listen 443 default_server ssl;",
			"location / { return 404; }", "location = /healthz {")
	}
	w := served(t)
	w.ingresses[0].Spec.IngressClassName = nil
	o := usual(t)
	o.withoutClass = true
	expect(t, w.configuration(o).text, "## start server api.example.org")
}

func TestAnnotationsCountBeforeTheConfigMapAndThatBeforeWhatIsUsual(t *testing.T) {
	w := served(t)
	w.settings = map[string]string{"proxy-read-timeout": "120", "proxy-connect-timeout": "2"}
	w.ingresses[0].Annotations = map[string]string{annotations + "proxy-read-timeout": "300", annotations + "proxy-send-timeout": "1h"}
	expect(t, w.configuration(usual(t)).text, "proxy_connect_timeout 2s;", "proxy_send_timeout 60s;", "proxy_read_timeout 300s;")
}

func TestTheListOfEndpointsHasAllUpstreams(t *testing.T) {
	w := served(t)
	listed := func() string {
		text, err := json.Marshal(w.configuration(usual(t)).backends)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if text := listed(); text != `[{"name":"keybuzz-api-http","endpoints":[{"address":"10.42.1.2","port":"8080"}]}]` {
		t.Error(text)
	}
	w.slices = nil
	if text := listed(); text != `[{"name":"keybuzz-api-http"}]` {
		t.Error(text)
	}
}

func TestThePROXYHeaderIsExpectedOnEveryPortOrOnNone(t *testing.T) {
	w := served(t)
	if strings.Contains(w.configuration(usual(t)).text, "proxy_protocol") {
		t.Error("asked for by nobody")
	}
	w.settings["use-proxy-protocol"] = "true"
	text := w.configuration(usual(t)).text
	expect(t, text, "real_ip_header proxy_protocol;")
	if strings.Count(text, "proxy_protocol;")+strings.Count(text, "proxy_protocol ssl;") != 5 {
		t.Error(text)
	}
}

func TestAHostHasTheCertificateOfItsSecretOnlyIfThatIsForIt(t *testing.T) {
	pem, err := fakeCertificate() // of ingress.local
	if err != nil {
		t.Fatal(err)
	}
	certificate, key, _ := strings.Cut(string(pem), "-----BEGIN EC")
	secret := read[core.Secret](t, "{metadata: {namespace: keybuzz, name: tls}}")
	secret.Data = map[string][]byte{core.TLSCertKey: []byte(certificate), core.TLSPrivateKeyKey: []byte("-----BEGIN EC" + key)}
	for host, file := range map[string]string{"ingress.local": "keybuzz-tls.pem", "api.example.org": defaultCertificate} {
		w := served(t)
		w.ingresses[0].Spec.Rules[0].Host = host
		w.ingresses[0].Spec.TLS = []networking.IngressTLS{{Hosts: []string{host}, SecretName: "tls"}}
		w.secrets = []*core.Secret{secret}
		c := w.configuration(usual(t))
		expect(t, block(c.text, "## start server "+host), "ssl_certificate "+directory+"/ssl/"+file+";")
		// What comes without TLS is sent there, unless it would meet the default certificate.
		if strings.Contains(c.text, "return 308") != (file != defaultCertificate) || len(c.files) != strings.Count(c.text, "return 308") {
			t.Error(host, c.text)
		}
		w.secrets = nil
		expect(t, block(w.configuration(usual(t)).text, "## start server "+host), "/ssl/"+defaultCertificate+";")
	}
}

func TestOfTwoIngressesForOnePathTheOlderOneHasIt(t *testing.T) {
	w := served(t)
	younger := w.ingresses[0].DeepCopy()
	younger.Name, younger.CreationTimestamp = "younger", meta.NewTime(time.Unix(2, 0))
	younger.Spec.Rules[0].HTTP.Paths[0].Backend.Service.Port = networking.ServiceBackendPort{Number: 9090}
	w.ingresses[0].CreationTimestamp = meta.NewTime(time.Unix(1, 0))
	w.ingresses = slices.Insert(w.ingresses, 0, younger)
	text := w.configuration(usual(t)).text
	expect(t, text, "proxy_pass http://keybuzz-api-http;")
	if strings.Contains(text, "younger") {
		t.Error(text)
	}
}

func TestAnIngressThatTakesAnothersPathIsNotAdmitted(t *testing.T) {
	w, o := served(t), usual(t)
	other := w.ingresses[0].DeepCopy()
	if err := w.admits(o, other); err != nil {
		t.Error("itself", err)
	}
	other.Name = "other"
	err := w.admits(o, other)
	if err == nil || err.Error() != `host "api.example.org" and path "/" is already defined in ingress keybuzz/api` {
		t.Error(err)
	}
	for what, change := range map[string]func(*networking.Ingress){
		"another path":  func(i *networking.Ingress) { i.Spec.Rules[0].HTTP.Paths[0].Path = "/v1" },
		"another host":  func(i *networking.Ingress) { i.Spec.Rules[0].Host = "other.example.org" },
		"another class": func(i *networking.Ingress) { i.Spec.IngressClassName = nil },
	} {
		allowed := other.DeepCopy()
		change(allowed)
		if err := w.admits(o, allowed); err != nil {
			t.Error(what, err)
		}
	}
}

func TestAPrefixIsThePathItselfAndAllBelowIt(t *testing.T) {
	w := served(t)
	w.ingresses[0].Spec.Rules[0].HTTP.Paths[0].Path = "/v1"
	text := block(w.configuration(usual(t)).text, "## start server api.example.org")
	expect(t, text, `location = "/v1" {`, `location "/v1/" {`, "location / { return 404; }")
}

func TestTheStatusHasTheNodesWithAControllerThatIsReady(t *testing.T) {
	node := func(name, internal, external string) core.Node {
		return core.Node{ObjectMeta: meta.ObjectMeta{Name: name}, Status: core.NodeStatus{Addresses: []core.NodeAddress{
			{Type: core.NodeInternalIP, Address: internal}, {Type: core.NodeExternalIP, Address: external},
		}}}
	}
	pod := func(node string, ready core.ConditionStatus) core.Pod {
		return core.Pod{Spec: core.PodSpec{NodeName: node}, Status: core.PodStatus{
			Conditions: []core.PodCondition{{Type: core.PodReady, Status: ready}},
		}}
	}
	nodes := []core.Node{node("b", "10.0.0.111", "203.0.113.111"), node("a", "10.0.0.110", "203.0.113.110"), node("c", "10.0.0.112", "")}
	pods := []core.Pod{pod("a", core.ConditionTrue), pod("b", core.ConditionTrue), pod("c", core.ConditionFalse)}
	for internal, wanted := range map[bool]string{true: "10.0.0.110 10.0.0.111", false: "203.0.113.110 203.0.113.111"} {
		var seen []string
		for _, each := range addresses(pods, nodes, internal) {
			seen = append(seen, each.IP)
		}
		if strings.Join(seen, " ") != wanted {
			t.Error(internal, seen)
		}
	}
}
