package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

const (
	root = "../.."
	// `make chart` makes these four.
	helm        = root + "/bin/tools/helm"
	kubeconform = root + "/bin/tools/kubeconform"
	kubeSchemas = root + "/bin/schemas"
	sluice      = root + "/bin/sluice"

	chart = root + "/deploy/helm/sluice"
)

// cases are the values that the policies are tested with, one or several files
// of examples/, and further options.
var cases = map[string][]string{
	"default":          {"-f", example("config")},
	"try":              {"-f", example("config"), "-f", example("try")},
	"production":       {"-f", example("config"), "-f", example("production")},
	"keda":             {"-f", example("config"), "-f", example("keda")},
	"ingress-nginx":    {"-f", example("config"), "-f", example("ingress-nginx")},
	"ingress-traefik":  {"-f", example("config"), "-f", example("ingress-traefik")},
	"postgres-storage": {"-f", example("config"), "-f", example("postgres-storage")},
	"mongodb-storage":  {"-f", example("config"), "-f", example("mongodb-storage")},
	"mutual-tls":       {"-f", example("config"), "-f", example("try"), "--set", "mutualTLS.secretPrefix=tls-"},
	"secret-config": {"--set", "config.existingSecret=config", "--set", "secrets.existingSecret=secrets", "--set", "nats.url=nats://n:4222",
		"--set", "syncGateway.tls.existingSecret=tls", "--set", "syncGateway.pathPrefix=/sync-service"},
}

func example(name string) string { return filepath.Join(chart, "examples", name+".yaml") }

// five are the services with the ports on which others reach them; 0 = none.
var five = map[string]int32{"bucket-store": 7441, "replicator": 7442, "compactor": 7443, "rules-evaluator": 0, "sync-gateway": 8080}

// release is what a chart makes.
type release struct {
	pods         map[string]corev1.PodTemplateSpec // by component
	deployments  map[string]appsv1.Deployment
	statefulSets map[string]appsv1.StatefulSet
	services     map[string]corev1.Service // by component
	headless     map[string]corev1.Service // the same, without an address of their own
	policies     map[string]networkingv1.NetworkPolicy
	budgets      map[string]policyv1.PodDisruptionBudget
	scalers      []autoscalingv2.HorizontalPodAutoscaler
	ingress      *networkingv1.Ingress
	configMaps   map[string]corev1.ConfigMap // by name
	kinds        map[string]int
	objects      []metav1.PartialObjectMetadata
}

func component(m metav1.ObjectMeta) string { return m.Labels["app.kubernetes.io/component"] }

// template renders the chart and reads what comes out, strictly.
func template(t *testing.T, options ...string) *release {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(helm, append([]string{"template", "sluice", chart, "--namespace", "here"}, options...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("helm template: %v\n%s", err, &errs)
	}
	r := &release{
		pods: map[string]corev1.PodTemplateSpec{}, deployments: map[string]appsv1.Deployment{}, statefulSets: map[string]appsv1.StatefulSet{},
		services: map[string]corev1.Service{}, headless: map[string]corev1.Service{}, policies: map[string]networkingv1.NetworkPolicy{}, budgets: map[string]policyv1.PodDisruptionBudget{},
		configMaps: map[string]corev1.ConfigMap{}, kinds: map[string]int{},
	}
	docs := utilyaml.NewDocumentDecoder(io.NopCloser(&out))
	buf := make([]byte, 1<<20)
	for {
		n, err := docs.Read(buf)
		if err == io.EOF {
			return r
		}
		if err != nil {
			t.Fatal(err)
		}
		r.add(t, buf[:n])
	}
}

func (r *release) add(t *testing.T, doc []byte) {
	t.Helper()
	var meta metav1.PartialObjectMetadata
	if err := yaml.Unmarshal(doc, &meta); err != nil {
		t.Fatalf("%v\n%s", err, doc)
	}
	if meta.Kind == "" {
		return
	}
	r.kinds[meta.Kind]++
	r.objects = append(r.objects, meta)
	read := func(v any) {
		if err := yaml.UnmarshalStrict(doc, v); err != nil {
			t.Fatalf("%s %s: %v", meta.Kind, meta.Name, err)
		}
	}
	switch c := component(meta.ObjectMeta); meta.Kind {
	case "Deployment":
		var d appsv1.Deployment
		read(&d)
		r.deployments[c], r.pods[c] = d, d.Spec.Template
	case "StatefulSet":
		var s appsv1.StatefulSet
		read(&s)
		r.statefulSets[c], r.pods[c] = s, s.Spec.Template
	case "Pod":
		var p corev1.Pod
		read(&p)
		r.pods[c] = corev1.PodTemplateSpec{ObjectMeta: p.ObjectMeta, Spec: p.Spec}
	case "Job":
		var j batchv1.Job
		read(&j)
		r.pods[c] = j.Spec.Template
	case "Service":
		var s corev1.Service
		read(&s)
		if s.Spec.ClusterIP == corev1.ClusterIPNone {
			r.headless[c] = s
		} else {
			r.services[c] = s
		}
	case "NetworkPolicy":
		var p networkingv1.NetworkPolicy
		read(&p)
		r.policies[c] = p
	case "PodDisruptionBudget":
		var b policyv1.PodDisruptionBudget
		read(&b)
		r.budgets[c] = b
	case "HorizontalPodAutoscaler":
		var h autoscalingv2.HorizontalPodAutoscaler
		read(&h)
		r.scalers = append(r.scalers, h)
	case "Ingress":
		r.ingress = new(networkingv1.Ingress)
		read(r.ingress)
	case "ConfigMap":
		var m corev1.ConfigMap
		read(&m)
		r.configMaps[m.Name] = m
	}
}

// helm's own idea of a good chart.
func TestLint(t *testing.T) {
	for name, options := range cases {
		if out, err := exec.Command(helm, append([]string{"lint", "--strict", chart}, options...)...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// Everything that is rendered is of a kind, and has only fields and types, that
// Kubernetes knows, or the CRD.
func TestSchemas(t *testing.T) {
	check := func(manifests io.Reader) (string, error) {
		cmd := exec.Command(kubeconform, "-strict", "-summary", "-schema-location", kubeSchemas+"/{{ .ResourceKind }}{{ .KindSuffix }}.json")
		cmd.Stdin = manifests
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for name, options := range cases {
		manifests, err := exec.Command(helm, append([]string{"template", "sluice", chart}, options...)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		if out, err := check(bytes.NewReader(manifests)); err != nil || !strings.Contains(out, "Skipped: 0") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	for _, wrong := range []string{
		"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {port: []}}",
		"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: many}]}}",
		"{apiVersion: monitoring.coreos.com/v1, kind: PodMonitor, metadata: {name: a}, spec: {selector: {}, podMetricsEndpoints: [{prot: a}]}}",
	} {
		if out, err := check(strings.NewReader(wrong)); err == nil {
			t.Errorf("not refused: %s\n%s", wrong, out)
		}
	}
}

// each runs f for every case.
func each(t *testing.T, f func(t *testing.T, r *release)) {
	for name, options := range cases {
		t.Run(name, func(t *testing.T) { f(t, template(t, options...)) })
	}
}

// Pods keep Kubernetes' "restricted" profile, and write nowhere but into their
// volumes.
func TestSecurity(t *testing.T) {
	each(t, func(t *testing.T, r *release) {
		for name, pod := range r.pods {
			s := pod.Spec
			if s.HostNetwork || s.HostPID || s.HostIPC {
				t.Errorf("%s: shares the host's namespaces", name)
			}
			if c := s.SecurityContext; c == nil || c.RunAsNonRoot == nil || !*c.RunAsNonRoot || c.RunAsUser == nil || *c.RunAsUser == 0 ||
				c.SeccompProfile == nil || c.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
				t.Errorf("%s: pod security %+v", name, c)
			}
			if s.AutomountServiceAccountToken == nil || *s.AutomountServiceAccountToken || (s.ServiceAccountName != "sluice") != (name == "migration") {
				t.Errorf("%s: has a service account's token", name)
			}
			if name != "test" && (pod.Labels["helm.sh/chart"] != "" || pod.Labels["app.kubernetes.io/version"] != "") {
				t.Errorf("%s: is replaced whenever the chart changes", name)
			}
			if s.EnableServiceLinks == nil || *s.EnableServiceLinks {
				// SLUICE_GATEWAY_PORT=tcp://…, for one, is made for a Service of the name.
				t.Errorf("%s: variables of Services would be taken for settings", name)
			}
			for _, v := range s.Volumes {
				if v.HostPath != nil {
					t.Errorf("%s: volume %s is of the host", name, v.Name)
				}
			}
			for _, c := range append(s.InitContainers, s.Containers...) {
				x := c.SecurityContext
				if x == nil || x.Privileged == nil || *x.Privileged || x.AllowPrivilegeEscalation == nil || *x.AllowPrivilegeEscalation ||
					x.ReadOnlyRootFilesystem == nil || !*x.ReadOnlyRootFilesystem || x.Capabilities == nil ||
					!slices.Equal(x.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(x.Capabilities.Add) > 0 {
					t.Errorf("%s: container security %+v", name, x)
				}
				for _, p := range c.Ports {
					if p.HostPort != 0 {
						t.Errorf("%s: port %d is of the host", name, p.HostPort)
					}
				}
				for _, e := range c.Env {
					if e.Value != "" && (strings.Contains(e.Name, "PASSWORD") || strings.Contains(e.Name, "TOKEN") || strings.HasPrefix(e.Name, "PS_")) {
						t.Errorf("%s: %s is given as text", name, e.Name)
					}
				}
			}
		}
		if r.kinds["Secret"] > 0 || r.kinds["Role"] > 0 || r.kinds["ClusterRole"] > 0 {
			t.Errorf("secrets and rights are not this chart's to make: %v", r.kinds)
		}
	})
}

// Each container asks for what it needs and says what it may have at most; Go
// is told to stay below it.
func TestResources(t *testing.T) {
	each(t, func(t *testing.T, r *release) {
		for name, pod := range r.pods {
			for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
				memory, limit := c.Resources.Requests.Memory(), c.Resources.Limits.Memory()
				if c.Resources.Requests.Cpu().IsZero() || memory.IsZero() || limit.Cmp(*memory) < 0 {
					t.Errorf("%s: %+v", name, c.Resources)
				}
				if _, ok := c.Resources.Limits[corev1.ResourceCPU]; ok {
					t.Errorf("%s: has a limit of CPU", name)
				}
				if _, ok := five[name]; !ok {
					continue
				}
				var mib int64
				if _, err := fmt.Sscanf(variables(c)["GOMEMLIMIT"], "%dMiB", &mib); err != nil || mib<<20 > limit.Value()*9/10 || mib<<20 < limit.Value()*8/10 {
					t.Errorf("%s: GOMEMLIMIT %q of %s", name, variables(c)["GOMEMLIMIT"], limit)
				}
			}
		}
	})
}

// Every pod that stays has its three probes, the services' on separate paths of
// the private port.
func TestProbes(t *testing.T) {
	each(t, func(t *testing.T, r *release) {
		for name, pod := range r.pods {
			if name == "test" || name == "migration" {
				continue
			}
			for _, c := range pod.Spec.Containers {
				for path, p := range map[string]*corev1.Probe{"startup": c.StartupProbe, "readiness": c.ReadinessProbe, "liveness": c.LivenessProbe} {
					if p == nil {
						t.Errorf("%s: no %s probe", name, path)
						continue
					}
					if _, ok := five[name]; !ok {
						continue
					}
					if p.HTTPGet == nil || p.HTTPGet.Path != "/probes/"+path || p.HTTPGet.Port != intstr.FromString("private") || p.HTTPGet.Scheme != "" {
						t.Errorf("%s: %s probe %+v", name, path, p.ProbeHandler)
					}
				}
				if l := c.LivenessProbe; l != nil && l.PeriodSeconds*max(l.FailureThreshold, 3) < 20 {
					t.Errorf("%s: is killed after %d s", name, l.PeriodSeconds*l.FailureThreshold)
				}
			}
		}
	})
}

// A stop is given the time that it takes: 40 s, as docs/operations.md says, after
// the time in which load balancers hear of a gateway's end.
func TestStop(t *testing.T) {
	each(t, func(t *testing.T, r *release) {
		for name := range five {
			pod, pause := r.pods[name].Spec, int64(0)
			hook := pod.Containers[0].Lifecycle
			if (hook != nil) != (name == "sync-gateway") {
				t.Errorf("%s: hooks %+v", name, hook)
				continue
			}
			if hook != nil {
				if hook.PreStop == nil || hook.PreStop.Sleep == nil { // an image without a shell has nothing else
					t.Errorf("%s: %+v", name, hook)
					continue
				}
				pause = hook.PreStop.Sleep.Seconds
			}
			if g := pod.TerminationGracePeriodSeconds; g == nil || *g < pause+40 {
				t.Errorf("%s: grace period %v, of which %d s are pause", name, g, pause)
			}
		}
	})
}

// What the loader of the services makes of the config and the environment of
// each container: it listens where its ports and Services say, and looks for
// the others where they are.
func TestSettings(t *testing.T) {
	each(t, func(t *testing.T, r *release) {
		config, secret := r.configMaps["sluice-config"]
		if !secret {
			config.Data = map[string]string{"powersync.yaml": "replication: {connections: [{type: postgresql, uri: !env PS_DATABASE_URI}]}\n" +
				"port: 7000\ntelemetry: {prometheus_port: 7001}\nsluice: {gateway: {port: 7002, metrics_port: 7003}, bucket_store: {address: 'x:1'}}\n"}
		}
		dir := t.TempDir()
		for name, text := range config.Data {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for name, port := range five {
			c := r.pods[name].Spec.Containers[0]
			if want := []string{"/" + name, "--config", "/etc/sluice/powersync.yaml"}; !slices.Equal(c.Command, want) || len(c.Args) > 0 {
				t.Errorf("%s: %q %q", name, c.Command, c.Args)
			}
			env := variables(c)
			got := settings(t, filepath.Join(dir, "powersync.yaml"), env)
			section := strings.ReplaceAll(name, "-", "_")
			if name == "sync-gateway" {
				section = "gateway"
			}
			want := map[string]string{
				"sluice.data":                         "/data",
				"sluice." + section + ".metrics_port": fmt.Sprint(containerPort(c, "private")),
				"sluice.bucket_store.address":         "sluice-bucket-store:7441",
				"sluice.replicator.address":           "sluice-replicator:7442",
				"sluice.compactor.address":            "sluice-compactor:7443",
				"storage.type":                        "embedded",
				"sluice.tls":                          fmt.Sprint(env["SLUICE_TLS_KEY"] != ""),
			}
			switch {
			case name == "sync-gateway":
				want["sluice.gateway.port"] = fmt.Sprint(containerPort(c, "clients"))
				want["sluice.gateway.tls"] = fmt.Sprint(env["SLUICE_GATEWAY_TLS_KEY"] != "")
			case port != 0:
				want["sluice."+section+".address"] = fmt.Sprintf(":%d", containerPort(c, "grpc"))
			}
			if r.kinds["StatefulSet"] > 1 {
				want["sluice.nats.url"] = "nats://sluice-nats:4222"
			}
			for key, v := range want {
				if got[key] != v {
					t.Errorf("%s: %s is %q, not %q", name, key, got[key], v)
				}
			}
			if port == 0 {
				continue
			}
			s, one := r.services[name]
			if !one {
				s = r.headless[name]
			}
			target := s.Spec.Ports[0].TargetPort.String()
			if s.Name != "sluice-"+name || !selects(s.Spec.Selector, r.pods[name]) || int32(containerPort(c, target)) != port ||
				name != "sync-gateway" && s.Spec.Ports[0].Port != port {
				t.Errorf("%s: service %+v", name, s.Spec)
			}
			for other, pod := range r.pods {
				if other != name && selects(s.Spec.Selector, pod) {
					t.Errorf("service of %s: selects %s too", name, other)
				}
			}
			for _, p := range s.Spec.Ports {
				if p.TargetPort.String() == "private" {
					t.Errorf("%s: the private port is in a Service", name)
				}
			}
		}
	})
}

// One name stands for all gateways, each by itself, for sluice sessions.
func TestHeadless(t *testing.T) {
	each(t, func(t *testing.T, r *release) {
		s, pod := r.headless["sync-gateway"], r.pods["sync-gateway"]
		if s.Name != "sluice-sync-gateway-headless" || !s.Spec.PublishNotReadyAddresses || !selects(s.Spec.Selector, pod) ||
			s.Spec.Ports[0].Port != int32(containerPort(pod.Spec.Containers[0], s.Spec.Ports[0].TargetPort.String())) {
			t.Errorf("%+v", r.headless)
		}
	})
}

// The configs of the examples are valid.
func TestExampleConfig(t *testing.T) {
	dir := t.TempDir()
	for name, text := range template(t, cases["default"]...).configMaps["sluice-config"].Data {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(sluice, "validate", "--offline", "--config", filepath.Join(dir, "powersync.yaml"))
	cmd.Env = secrets
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "warning") || !strings.Contains(string(out), "sync-config.yaml are valid") {
		t.Errorf("%v\n%s", err, out)
	}
}

// secrets stand for the Secret of the examples.
var secrets = []string{"PS_DATABASE_URI=postgresql://u:p@db/d", "PS_DATABASE_SSLMODE=disable", "PS_SIGNING_KEY=a2V5", "PS_ADMIN_TOKEN=t"}

// settings is what `sluice config` prints.
func settings(t *testing.T, file string, env map[string]string) map[string]string {
	t.Helper()
	cmd := exec.Command(sluice, "config", "--config", file)
	cmd.Env = slices.Clone(secrets)
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("sluice config: %v\n%s", err, out)
	}
	all := map[string]string{}
	for line := range strings.Lines(string(out)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), ": ")
		all[k] = v
	}
	return all
}

func variables(c corev1.Container) map[string]string {
	all := map[string]string{}
	for _, e := range c.Env {
		all[e.Name] = e.Value
	}
	return all
}

func containerPort(c corev1.Container, name string) int {
	for _, p := range c.Ports {
		if p.Name == name {
			return int(p.ContainerPort)
		}
	}
	return -1
}

func selects(selector map[string]string, pod corev1.PodTemplateSpec) bool {
	return labels.SelectorFromSet(selector).Matches(labels.Set(pod.Labels))
}

// Within the release, each pod reaches exactly what it works with.
func TestNetworkPolicies(t *testing.T) {
	want := map[string][]string{
		"bucket-store":    {"nats:4222"},
		"compactor":       {"bucket-store:7441"},
		"replicator":      {"bucket-store:7441", "nats:4222", "postgres:5432"},
		"rules-evaluator": {"bucket-store:7441", "nats:4222"},
		"sync-gateway":    {"bucket-store:7441", "compactor:7443", "nats:4222", "replicator:7442"},
		"nats":            nil,
		"postgres":        nil,
		"test":            {"sync-gateway:8080"},
	}
	r := template(t, cases["try"]...)
	for name, pod := range r.pods {
		if n := len(covering(r, pod)); n != 1 {
			t.Errorf("%s: %d policies", name, n)
		}
	}
	if g := r.pods["sync-gateway"]; !leaves(r, g, g, 8080) || !enters(r, g, g, 8080) {
		t.Error("a gateway does not reach the others, whom sluice sessions asks")
	}
	for from, pod := range r.pods {
		var got []string
		for to, other := range r.pods {
			for _, p := range other.Spec.Containers[0].Ports {
				if from != to && leaves(r, pod, other, p.ContainerPort) && enters(r, pod, other, p.ContainerPort) {
					got = append(got, fmt.Sprintf("%s:%d", to, p.ContainerPort))
				}
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want[from]) {
			t.Errorf("%s reaches %q, not %q", from, got, want[from])
		}
	}

	// Outside: clients come in everywhere or from where they are said to, and
	// nobody to the private port unless named.
	stranger := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "other"}}}
	for name, pod := range r.pods {
		for _, p := range pod.Spec.Containers[0].Ports {
			if got := enters(r, stranger, pod, p.ContainerPort); got != (p.Name == "clients") {
				t.Errorf("a stranger reaches %s:%d: %v", name, p.ContainerPort, got)
			}
		}
	}
	r = template(t, cases["production"]...)
	for name, pod := range r.pods {
		for _, p := range pod.Spec.Containers[0].Ports {
			if enters(r, stranger, pod, p.ContainerPort) {
				t.Errorf("a stranger reaches %s:%d", name, p.ContainerPort)
			}
		}
	}
	for name := range five {
		rules := r.policies[name].Spec.Ingress
		last := rules[len(rules)-1]
		if last.Ports[0].Port.IntVal != 9464 || last.From[0].NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"] != "monitoring" {
			t.Errorf("%s: metrics are reached by %+v", name, last)
		}
		outside := map[int32]bool{}
		for _, e := range r.policies[name].Spec.Egress {
			for _, p := range e.Ports {
				outside[p.Port.IntVal] = true
			}
		}
		if outside[5432] != (name == "replicator") || outside[443] != (name == "sync-gateway") || outside[4222] != (name != "compactor") || !outside[4317] || !outside[53] {
			t.Errorf("%s: ports that it may go out by: %v", name, outside)
		}
	}
}

func covering(r *release, pod corev1.PodTemplateSpec) (all []networkingv1.NetworkPolicy) {
	for _, p := range r.policies {
		if selects(p.Spec.PodSelector.MatchLabels, pod) {
			all = append(all, p)
		}
	}
	return all
}

func leaves(r *release, from, to corev1.PodTemplateSpec, port int32) bool {
	for _, p := range covering(r, from) {
		for _, e := range p.Spec.Egress {
			if among(e.To, to) && open(e.Ports, port) {
				return true
			}
		}
	}
	return false
}

func enters(r *release, from, to corev1.PodTemplateSpec, port int32) bool {
	for _, p := range covering(r, to) {
		for _, i := range p.Spec.Ingress {
			if among(i.From, from) && open(i.Ports, port) {
				return true
			}
		}
	}
	return false
}

func among(peers []networkingv1.NetworkPolicyPeer, pod corev1.PodTemplateSpec) bool {
	if len(peers) == 0 {
		return true
	}
	for _, p := range peers {
		// Those of other namespaces are not those of the release.
		if p.NamespaceSelector == nil && p.PodSelector != nil && selects(p.PodSelector.MatchLabels, pod) {
			return true
		}
	}
	return false
}

func open(ports []networkingv1.NetworkPolicyPort, port int32) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool {
		return p.Port.IntVal == port && (p.Protocol == nil || *p.Protocol == corev1.ProtocolTCP)
	})
}

// One pod of a kind at a time is taken away, and they are spread.
func TestAvailability(t *testing.T) {
	each(t, func(t *testing.T, r *release) {
		for name := range five {
			pod := r.pods[name]
			b, ok := r.budgets[name]
			if !ok || !selects(b.Spec.Selector.MatchLabels, pod) || b.Spec.MaxUnavailable.IntVal != 1 {
				t.Errorf("%s: budget %+v", name, b.Spec)
			}
			keys := map[string]bool{}
			for _, c := range pod.Spec.TopologySpreadConstraints {
				keys[c.TopologyKey] = selects(c.LabelSelector.MatchLabels, pod)
			}
			if !keys["topology.kubernetes.io/zone"] || !keys["kubernetes.io/hostname"] {
				t.Errorf("%s: spread over %v", name, keys)
			}
			if d, ok := r.deployments[name]; ok && d.Spec.Strategy.RollingUpdate.MaxUnavailable.IntVal != 0 {
				t.Errorf("%s: an update takes pods away before there are others", name)
			}
		}
		if _, ok := r.deployments["bucket-store"]; ok {
			return
		}
		store := r.statefulSets["bucket-store"].Spec
		if *store.Replicas != 1 || len(store.VolumeClaimTemplates) != 1 || store.PersistentVolumeClaimRetentionPolicy.WhenDeleted != "Retain" {
			t.Errorf("bucket-store: %+v", store)
		}
	})
}

// On a database bucket-store has no volume and may reach the database. Its pods
// are each called by those who look for the service, and one another. Migrations
// are done before.
func TestStorage(t *testing.T) {
	for name, port := range map[string]int32{"postgres-storage": 5432, "mongodb-storage": 27017} {
		t.Run(name, func(t *testing.T) { testStorage(t, name, port) })
	}
}

func testStorage(t *testing.T, name string, port int32) {
	r := template(t, cases[name]...)
	d, ok := r.deployments["bucket-store"]
	if u := d.Spec.Strategy.RollingUpdate; !ok || *d.Spec.Replicas != 2 || u.MaxUnavailable.IntVal != 0 || u.MaxSurge.IntVal != 1 {
		t.Errorf("%+v", d.Spec)
	}
	if _, ok := r.headless["bucket-store"]; !ok {
		t.Error("the service is not of all pods")
	}
	pod := r.pods["bucket-store"]
	at := -1
	for i, e := range pod.Spec.Containers[0].Env {
		switch {
		case e.Name == "POD_IP" && e.ValueFrom.FieldRef.FieldPath == "status.podIP":
			at = i
		case e.Name == "SLUICE_BUCKET_STORE_ADVERTISE" && e.Value == "[$(POD_IP)]:7441" && at >= 0: // a variable may name those before it
			at = len(pod.Spec.Containers[0].Env)
		}
	}
	if at != len(pod.Spec.Containers[0].Env) {
		t.Error("a pod does not say where the others find it")
	}
	if !leaves(r, pod, pod, 7441) || !enters(r, pod, pod, 7441) {
		t.Error("a pod may not call another one")
	}
	if vs := d.Spec.Template.Spec.Volumes; len(vs) != 1 || vs[0].Name != "config" {
		t.Errorf("volumes %+v", vs)
	}
	reached := false
	for _, e := range r.policies["bucket-store"].Spec.Egress {
		reached = reached || open(e.Ports, port) && e.To[0].IPBlock.CIDR == "10.20.0.0/16"
	}
	if !reached {
		t.Error("it may not reach its database")
	}
	m := r.pods["migration"].Spec
	if len(m.Containers) != 1 || !slices.Equal(m.Containers[0].Command, []string{"/sluice", "migrate", "up", "--config", "/etc/sluice/powersync.yaml"}) ||
		m.Volumes[0].ConfigMap.Name != "sluice-migration" || strings.TrimSpace(r.configMaps["sluice-migration"].Data["powersync.yaml"]) != strings.TrimSpace(r.configMaps["sluice-config"].Data["powersync.yaml"]) {
		t.Errorf("%+v", m)
	}
}

// Gateways are scaled by streams and by processor, and nobody else counts them.
func TestAutoscaling(t *testing.T) {
	r := template(t, cases["production"]...)
	if len(r.scalers) != 1 || r.deployments["sync-gateway"].Spec.Replicas != nil {
		t.Fatalf("%d scalers, replicas %v", len(r.scalers), r.deployments["sync-gateway"].Spec.Replicas)
	}
	s := r.scalers[0].Spec
	if s.ScaleTargetRef.Name != "sluice-sync-gateway" || *s.MinReplicas != 3 || s.MaxReplicas != 20 || len(s.Metrics) != 2 ||
		s.Metrics[0].Pods.Metric.Name != "powersync_concurrent_connections" || s.Metrics[0].Pods.Target.AverageValue.Value() != 5000 ||
		s.Metrics[1].Resource.Name != corev1.ResourceCPU || *s.Metrics[1].Resource.Target.AverageUtilization != 70 {
		t.Errorf("%+v", s)
	}
	r = template(t, cases["keda"]...)
	if len(r.scalers) != 0 || r.kinds["ScaledObject"] != 1 || r.deployments["sync-gateway"].Spec.Replicas != nil {
		t.Errorf("keda: %v", r.kinds)
	}
	if r = template(t, cases["default"]...); r.kinds["ScaledObject"]+len(r.scalers) != 0 || *r.deployments["sync-gateway"].Spec.Replicas != 2 {
		t.Errorf("not scaled: %v", r.kinds)
	}
}

// An Ingress leads to the gateways, and ingress-nginx, which does so by default,
// neither buffers nor cuts streams that are silent.
func TestIngress(t *testing.T) {
	for name, class := range map[string]string{"ingress-nginx": "nginx", "ingress-traefik": "traefik"} {
		r := template(t, cases[name]...)
		i := r.ingress
		if i == nil || *i.Spec.IngressClassName != class || len(i.Spec.Rules) != 1 || i.Spec.TLS[0].Hosts[0] != i.Spec.Rules[0].Host {
			t.Errorf("%s: %+v", name, i)
			continue
		}
		to, s := i.Spec.Rules[0].HTTP.Paths[0].Backend.Service, r.services["sync-gateway"]
		if to.Name != s.Name || to.Port.Number != s.Spec.Ports[0].Port {
			t.Errorf("%s: leads to %+v", name, to)
		}
	}
	a := template(t, cases["ingress-nginx"]...).ingress.Annotations
	for _, k := range []string{"proxy-buffering", "proxy-request-buffering"} {
		if v := a["nginx.ingress.kubernetes.io/"+k]; v != "off" {
			t.Errorf("%s is %q", k, v)
		}
	}
	for _, k := range []string{"proxy-read-timeout", "proxy-send-timeout"} {
		if n, err := strconv.Atoi(a["nginx.ingress.kubernetes.io/"+k]); err != nil || n <= 60 {
			t.Errorf("%s is %d s", k, n)
		}
	}
}

// With mutual TLS each service, and NATS, has the certificate of its own Secret and
// no other, where its settings say.
func TestMutualTLS(t *testing.T) {
	r := template(t, cases["mutual-tls"]...)
	for name, pod := range r.pods {
		secret, at := "", ""
		for _, v := range pod.Spec.Volumes {
			if v.Name == "mutual-tls" {
				secret = v.Secret.SecretName
			}
		}
		c := pod.Spec.Containers[0]
		for _, m := range c.VolumeMounts {
			if m.Name == "mutual-tls" {
				at = m.MountPath
			}
		}
		_, service := five[name]
		if !service && name != "nats" {
			if secret != "" || variables(c)["SLUICE_TLS_KEY"] != "" {
				t.Errorf("%s has a certificate: %q", name, secret)
			}
			continue
		}
		for variable, file := range map[string]string{"SLUICE_TLS_CA": "ca.crt", "SLUICE_TLS_CERTIFICATE": "tls.crt", "SLUICE_TLS_KEY": "tls.key"} {
			if got := variables(c)[variable]; secret != "tls-"+name || at == "" || got != at+"/"+file {
				t.Errorf("%s: %s is %q, secret %q at %q", name, variable, got, secret, at)
			}
		}
	}
}

// A change of the config restarts the services, one of the sync config does not.
func TestConfigChange(t *testing.T) {
	pod := func(options ...string) string {
		r := template(t, append(slices.Clone(cases["default"]), options...)...)
		b, err := yaml.Marshal(r.pods["sync-gateway"])
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	before := pod()
	if pod("--set", "config.powersync=port: 8080") == before {
		t.Error("a changed config restarts nothing")
	}
	if pod("--set", "config.syncConfig=bucket_definitions: {}") != before {
		t.Error("a changed sync config restarts the services")
	}
}

// The alerts and boards in files/ become objects, each a whole one.
func TestMonitoring(t *testing.T) {
	r := template(t, cases["production"]...)
	count := func(pattern string) int {
		files, err := filepath.Glob(filepath.Join(chart, "files", pattern))
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	if n := count("rules/*.yaml"); r.kinds["PrometheusRule"] != n {
		t.Errorf("%d files of rules, %d objects", n, r.kinds["PrometheusRule"])
	}
	boards := 0
	for name := range r.configMaps {
		if strings.HasPrefix(name, "sluice-board-") {
			boards++
		}
	}
	if n := count("boards/*.json"); boards != n {
		t.Errorf("%d boards, %d objects", n, boards)
	}
	if r.kinds["PodMonitor"] != 1 {
		t.Errorf("%v", r.kinds)
	}
}

// What cannot work is refused, with a message that says what to do.
func TestRefused(t *testing.T) {
	config := cases["default"]
	for _, c := range []struct {
		options []string
		says    string
	}{
		{nil, "the service config is missing"},
		{append(slices.Clone(config), "--set", "replicator.replica=2"), "additional properties 'replica' not allowed"},
		{append(slices.Clone(config), "--set", "syncGateway.resources.limits=null"), "missing property 'limits'"},
		{append(slices.Clone(config), "--set", "nats.url=nats://user:secret@n:4222"), "does not match pattern"},
		{append(slices.Clone(config), "--set", "nats.enabled=true,nats.url=nats://n:4222"), "give one of them"},
		{append(slices.Clone(config), "--set", "config.existingSecret=s"), "not beside them"},
		{append(slices.Clone(config), "--set", "ingress.enabled=true"), "ingress.host is missing"},
		{append(slices.Clone(config), "--set", "bucketStore.replicas=2"), "the embedded store has one owner"},
		{append(slices.Clone(config), "--set", "bucketStore.migrationJob=true"), "needs no migrations"},
		{append(slices.Clone(config), "--set", "syncGateway.autoscaling.enabled=true,syncGateway.autoscaling.targetStreams=0,syncGateway.autoscaling.targetCPUPercent=0"), "targetStreams, targetCPUPercent or both"},
		{append(slices.Clone(config), "--kube-version", "1.29.0"), "chart requires kubeVersion"},
	} {
		out, err := exec.Command(helm, append([]string{"template", "sluice", chart}, c.options...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.says) {
			t.Errorf("%q: %v, without %q\n%s", c.options, err, c.says, out)
		}
	}
}

// Names and labels: every object is in the release's namespace and says what it
// is of; no name is longer than Kubernetes allows.
func TestNames(t *testing.T) {
	long := append(slices.Clone(cases["try"]), "--set", "fullnameOverride="+strings.Repeat("long", 20))
	for _, options := range append([][]string{long}, cases["production"], cases["try"]) {
		for _, o := range template(t, options...).objects {
			if o.Namespace != "here" || o.Labels["app.kubernetes.io/instance"] != "sluice" || component(o.ObjectMeta) == "" || len(o.Name) > 63 {
				t.Errorf("%s %s: namespace %q, labels %v", o.Kind, o.Name, o.Namespace, o.Labels)
			}
		}
	}
}
