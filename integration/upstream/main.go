// An API server made of Kubernetes' own libraries, to hold the stores against: the server of custom resources as it is in
// kube-apiserver, with its storage in etcd, watch cache, schemas, rules, patches and paging, and the kinds of the core groups
// in a plain registry, without the checks and defaults that kube-apiserver has for them. Everybody with the one token may do
// everything.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discv1 "k8s.io/api/discovery/v1"
	netv1 "k8s.io/api/networking/v1"
	extserver "k8s.io/apiextensions-apiserver/pkg/apiserver"
	extclient "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	"k8s.io/apiextensions-apiserver/pkg/cmd/server/options"
	extopenapi "k8s.io/apiextensions-apiserver/pkg/generated/openapi"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/request/union"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/names"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/kube-openapi/pkg/common"
	"upstream/gen"
)

var scheme = runtime.NewScheme()
var codecs = serializer.NewCodecFactory(scheme)

type kind struct {
	group, version, resource, singular string
	namespaced, status                 bool
	newFunc, newList                   func() runtime.Object
}

var kinds = []kind{
	{"", "v1", "nodes", "node", false, true, func() runtime.Object { return &corev1.Node{} }, func() runtime.Object { return &corev1.NodeList{} }},
	{"", "v1", "namespaces", "namespace", false, true, func() runtime.Object { return &corev1.Namespace{} }, func() runtime.Object { return &corev1.NamespaceList{} }},
	{"", "v1", "pods", "pod", true, true, func() runtime.Object { return &corev1.Pod{} }, func() runtime.Object { return &corev1.PodList{} }},
	{"", "v1", "services", "service", true, true, func() runtime.Object { return &corev1.Service{} }, func() runtime.Object { return &corev1.ServiceList{} }},
	{"", "v1", "serviceaccounts", "serviceaccount", true, false, func() runtime.Object { return &corev1.ServiceAccount{} }, func() runtime.Object { return &corev1.ServiceAccountList{} }},
	{"", "v1", "secrets", "secret", true, false, func() runtime.Object { return &corev1.Secret{} }, func() runtime.Object { return &corev1.SecretList{} }},
	{"", "v1", "configmaps", "configmap", true, false, func() runtime.Object { return &corev1.ConfigMap{} }, func() runtime.Object { return &corev1.ConfigMapList{} }},
	{"", "v1", "events", "event", true, false, func() runtime.Object { return &corev1.Event{} }, func() runtime.Object { return &corev1.EventList{} }},
	{"discovery.k8s.io", "v1", "endpointslices", "endpointslice", true, false, func() runtime.Object { return &discv1.EndpointSlice{} }, func() runtime.Object { return &discv1.EndpointSliceList{} }},
	{"networking.k8s.io", "v1", "networkpolicies", "networkpolicy", true, false, func() runtime.Object { return &netv1.NetworkPolicy{} }, func() runtime.Object { return &netv1.NetworkPolicyList{} }},
	{"coordination.k8s.io", "v1", "leases", "lease", true, false, func() runtime.Object { return &coordv1.Lease{} }, func() runtime.Object { return &coordv1.LeaseList{} }},
	{"apps", "v1", "daemonsets", "daemonset", true, true, func() runtime.Object { return &appsv1.DaemonSet{} }, func() runtime.Object { return &appsv1.DaemonSetList{} }},
	{"apps", "v1", "deployments", "deployment", true, true, func() runtime.Object { return &appsv1.Deployment{} }, func() runtime.Object { return &appsv1.DeploymentList{} }},
}

// What is done to an object of any kind before it is stored.
type strategy struct {
	runtime.ObjectTyper
	names.NameGenerator
	namespaced bool
	status     bool
}

func (s strategy) NamespaceScoped() bool { return s.namespaced }
func (s strategy) PrepareForCreate(_ context.Context, obj runtime.Object) {
	if p, ok := obj.(*corev1.Pod); ok && p.Status.Phase == "" {
		p.Status = corev1.PodStatus{Phase: corev1.PodPending}
	}
	if n, ok := obj.(*corev1.Namespace); ok {
		n.Status.Phase = corev1.NamespaceActive
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		n.Labels["kubernetes.io/metadata.name"] = n.Name
	}
}
func (s strategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	switch o := obj.(type) {
	case *corev1.Pod:
		if s.status {
			o.Spec = old.(*corev1.Pod).Spec
		} else {
			o.Status = old.(*corev1.Pod).Status
		}
	case *corev1.Node:
		if s.status {
			o.Spec = old.(*corev1.Node).Spec
		} else {
			o.Status = old.(*corev1.Node).Status
		}
	case *corev1.Service:
		if s.status {
			o.Spec = old.(*corev1.Service).Spec
		} else {
			o.Status = old.(*corev1.Service).Status
		}
	}
}
func (s strategy) Validate(context.Context, runtime.Object) field.ErrorList { return nil }
func (s strategy) AllowCreateOnUpdate() bool                                { return false }
func (s strategy) AllowUnconditionalUpdate() bool                           { return true }
func (s strategy) Canonicalize(runtime.Object)                              {}
func (s strategy) ValidateUpdate(context.Context, runtime.Object, runtime.Object) field.ErrorList {
	return nil
}
func (s strategy) WarningsOnCreate(context.Context, runtime.Object) []string { return nil }
func (s strategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}

// What field selectors may ask for.
func attrs(obj runtime.Object) (labels.Set, fields.Set, error) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, nil, err
	}
	f := fields.Set{"metadata.name": m.GetName()}
	if m.GetNamespace() != "" {
		f["metadata.namespace"] = m.GetNamespace()
	}
	if p, ok := obj.(*corev1.Pod); ok {
		f["spec.nodeName"] = p.Spec.NodeName
		f["status.phase"] = string(p.Status.Phase)
		f["status.podIP"] = p.Status.PodIP
		f["spec.hostNetwork"] = fmt.Sprint(p.Spec.HostNetwork)
	}
	return labels.Set(m.GetLabels()), f, nil
}

func match(label labels.Selector, f fields.Selector) storage.SelectionPredicate {
	return storage.SelectionPredicate{Label: label, Field: f, GetAttrs: attrs}
}

// The status of an object as a resource of its own.
type statusREST struct{ store *genericregistry.Store }

func (r *statusREST) New() runtime.Object { return r.store.New() }
func (r *statusREST) Destroy()            {}
func (r *statusREST) Get(ctx context.Context, name string, o *metav1.GetOptions) (runtime.Object, error) {
	return r.store.Get(ctx, name, o)
}
func (r *statusREST) Update(ctx context.Context, name string, i rest.UpdatedObjectInfo, c rest.ValidateObjectFunc, u rest.ValidateObjectUpdateFunc, _ bool, o *metav1.UpdateOptions) (runtime.Object, bool, error) {
	return r.store.Update(ctx, name, i, c, u, false, o)
}

// The one login.
type fixedToken string

func (t fixedToken) AuthenticateToken(_ context.Context, token string) (*authenticator.Response, bool, error) {
	if token != string(t) {
		return nil, false, nil
	}
	return &authenticator.Response{User: &user.DefaultInfo{Name: "admin", UID: "1", Groups: []string{"system:masters", "system:authenticated"}}}, true, nil
}

func main() {
	address := flag.String("address", "127.0.0.1", "where to listen")
	etcd := flag.String("etcd", "http://127.0.0.1:2379", "where etcd listens")
	port := flag.Int("port", 6443, "where to listen")
	kubeconfig := flag.String("kubeconfig", "kubeconfig", "how to reach this server itself, written beforehand")
	token := flag.String("token", "t0ken", "who shows it may do everything")
	certs := flag.String("certs", "certs", "folder of the certificate, made if it is not there")
	flag.Parse()
	groups := map[string][]kind{}
	for _, k := range kinds {
		groups[k.group] = append(groups[k.group], k)
	}
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discv1.AddToScheme, netv1.AddToScheme, coordv1.AddToScheme, appsv1.AddToScheme} {
		must(add(scheme))
	}
	// The stored form is the served one.
	for g, ks := range groups {
		internal := schema.GroupVersion{Group: g, Version: runtime.APIVersionInternal}
		for _, k := range ks {
			scheme.AddKnownTypes(internal, k.newFunc(), k.newList())
		}
		must(scheme.SetVersionPriority(schema.GroupVersion{Group: g, Version: "v1"}))
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	must(scheme.AddFieldLabelConversionFunc(corev1.SchemeGroupVersion.WithKind("Pod"), func(l, v string) (string, string, error) {
		switch l {
		case "metadata.name", "metadata.namespace", "spec.nodeName", "status.phase", "status.podIP", "spec.hostNetwork":
			return l, v, nil
		}
		return "", "", fmt.Errorf("field label not supported: %s", l)
	}))
	o := options.NewCustomResourceDefinitionsServerOptions(os.Stdout, os.Stderr)
	o.RecommendedOptions.Etcd.StorageConfig.Transport.ServerList = []string{*etcd}
	o.RecommendedOptions.SecureServing.BindPort = *port
	o.RecommendedOptions.SecureServing.BindAddress = net.ParseIP(*address)
	o.RecommendedOptions.SecureServing.ServerCert.CertDirectory = *certs
	o.RecommendedOptions.Authentication = nil
	o.RecommendedOptions.Authorization = nil
	o.RecommendedOptions.CoreAPI.CoreAPIKubeconfigPath = *kubeconfig
	// Their configuration is of kinds that are not served here.
	o.RecommendedOptions.Admission.DisablePlugins = []string{
		"MutatingAdmissionPolicy", "MutatingAdmissionWebhook", "ValidatingAdmissionPolicy", "ValidatingAdmissionWebhook",
	}
	if o.RecommendedOptions.Features != nil {
		o.RecommendedOptions.Features.EnablePriorityAndFairness = false
	}
	must(o.Complete())
	config, err := o.Config()
	must(err)
	config.GenericConfig.Authorization.Authorizer = authorizerfactory.NewAlwaysAllowAuthorizer()
	config.GenericConfig.Authentication.Authenticator = union.New(bearertoken.New(fixedToken(*token)))
	defs := func(ref common.ReferenceCallback) map[string]common.OpenAPIDefinition {
		all := extopenapi.GetOpenAPIDefinitions(ref)
		for k, v := range gen.GetOpenAPIDefinitions(ref) {
			all[k] = v
		}
		return all
	}
	namer := openapinamer.NewDefinitionNamer(extserver.Scheme, scheme, clientscheme.Scheme)
	config.GenericConfig.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(defs, namer)
	config.GenericConfig.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(defs, namer)
	etcdOptions := *o.RecommendedOptions.Etcd
	external := config.GenericConfig
	completed := config.Complete()
	completed.GenericConfig.EnableDiscovery = true
	srv, err := completed.New(genericapiserver.NewEmptyDelegate())
	must(err)
	for g, ks := range groups {
		gv := schema.GroupVersion{Group: g, Version: "v1"}
		info := genericapiserver.NewDefaultAPIGroupInfo(g, scheme, metav1.ParameterCodec, codecs)
		info.ParameterCodec = runtime.NewParameterCodec(scheme)
		opts := etcdOptions
		opts.StorageConfig.Codec = codecs.LegacyCodec(gv)
		opts.StorageConfig.Prefix = "/registry"
		getter := opts.CreateRESTOptionsGetter(&genericoptions.SimpleStorageFactory{StorageConfig: opts.StorageConfig}, external.ResourceTransformers)
		resources := map[string]rest.Storage{}
		for _, k := range ks {
			st := strategy{scheme, names.SimpleNameGenerator, k.namespaced, false}
			gr := schema.GroupResource{Group: g, Resource: k.resource}
			store := &genericregistry.Store{
				NewFunc: k.newFunc, NewListFunc: k.newList, PredicateFunc: match,
				DefaultQualifiedResource: gr, SingularQualifiedResource: schema.GroupResource{Group: g, Resource: k.singular},
				CreateStrategy: st, UpdateStrategy: st, DeleteStrategy: st,
				TableConvertor: rest.NewDefaultTableConvertor(gr),
			}
			must(store.CompleteWithOptions(&generic.StoreOptions{RESTOptions: getter, AttrFunc: attrs}))
			resources[k.resource] = store
			if k.status {
				c := *store
				s2 := st
				s2.status = true
				c.UpdateStrategy = s2
				resources[k.resource+"/status"] = &statusREST{&c}
			}
		}
		info.VersionedResourcesStorageMap["v1"] = resources
		if g == "" {
			must(srv.GenericAPIServer.InstallLegacyAPIGroup("/api", &info))
		} else {
			must(srv.GenericAPIServer.InstallAPIGroup(&info))
		}
	}
	// In a cluster the aggregator lists the groups of custom resources.
	must(srv.GenericAPIServer.AddPostStartHook("crd-groups", func(c genericapiserver.PostStartHookContext) error {
		cl, err := extclient.NewForConfig(c.LoopbackClientConfig)
		if err != nil {
			return err
		}
		go func() {
			have := map[string]bool{}
			for {
				time.Sleep(200 * time.Millisecond)
				l, err := cl.ApiextensionsV1().CustomResourceDefinitions().List(context.Background(), metav1.ListOptions{})
				if err != nil {
					continue
				}
				now := map[string]bool{}
				for _, d := range l.Items {
					g, v := d.Spec.Group, d.Spec.Versions[0].Name
					now[g] = true
					if !have[g] {
						gv := metav1.GroupVersionForDiscovery{GroupVersion: g + "/" + v, Version: v}
						srv.GenericAPIServer.DiscoveryGroupManager.AddGroup(metav1.APIGroup{Name: g, Versions: []metav1.GroupVersionForDiscovery{gv}, PreferredVersion: gv})
					}
				}
				for g := range have {
					if !now[g] {
						srv.GenericAPIServer.DiscoveryGroupManager.RemoveGroup(g)
					}
				}
				have = now
			}
		}()
		return nil
	}))
	must(srv.GenericAPIServer.PrepareRun().RunWithContext(genericapiserver.SetupSignalContext()))
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
