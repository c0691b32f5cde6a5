package main

import (
	"encoding/json"
	"fmt"
	"net/http"

	admission "k8s.io/api/admission/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
)

// answerAdmission tells the API server which Ingresses it should not take.
func (c *controller) answerAdmission() {
	server := http.Server{Addr: c.webhook, Handler: http.HandlerFunc(c.review)}
	klog.Fatal(server.ListenAndServeTLS(c.webhookCertificate, c.webhookKey))
}

func (c *controller) review(w http.ResponseWriter, r *http.Request) {
	var asked admission.AdmissionReview
	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil || asked.Request == nil {
		http.Error(w, "this is no AdmissionReview", http.StatusBadRequest)
		return
	}
	answer := &admission.AdmissionResponse{UID: asked.Request.UID, Allowed: true}
	if err := c.admits(asked.Request); err != nil {
		klog.ErrorS(err, "invalid ingress configuration", "ingress", asked.Request.Namespace+"/"+asked.Request.Name)
		answer.Allowed, answer.Result = false, &meta.Status{Code: http.StatusBadRequest, Message: err.Error()}
	}
	asked.Request, asked.Response = nil, answer
	json.NewEncoder(w).Encode(asked)
}

func (c *controller) admits(request *admission.AdmissionRequest) error {
	if request.Operation == admission.Delete {
		return nil
	}
	var ingress networking.Ingress
	if err := json.Unmarshal(request.Object.Raw, &ingress); err != nil {
		return err
	}
	known, err := c.known()
	if err != nil {
		return err
	}
	return known.admits(c.options, &ingress)
}

// admits an Ingress unless another one that is served has one of its paths.
func (w world) admits(o options, ingress *networking.Ingress) error {
	if !w.claims(o, ingress) {
		return nil
	}
	served := map[string]*networking.Ingress{}
	for _, other := range w.claimed(o) {
		if key(other) != key(ingress) {
			for _, path := range paths(other) {
				served[path] = other
			}
		}
	}
	for _, path := range paths(ingress) {
		if other := served[path]; other != nil {
			return fmt.Errorf("%s is already defined in ingress %s", path, key(other))
		}
	}
	return nil
}

func paths(ingress *networking.Ingress) (found []string) {
	for _, rule := range ingress.Spec.Rules {
		if rule.HTTP != nil {
			for _, path := range rule.HTTP.Paths {
				found = append(found, fmt.Sprintf("host %q and path %q", rule.Host, path.Path))
			}
		}
	}
	return found
}
