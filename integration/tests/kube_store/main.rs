//! The kubernetes store against an API server: the contract, Calico's layout, Nodes and Pods, and every trouble a server
//! makes. Which server: KUBECONFIG names one (an empty cluster: its pools, peers and sets are deleted), KUBEBUILDER_ASSETS
//! a folder with `kube-apiserver` and `etcd`; otherwise the one of this package. Each run says which it used.

mod contract;
mod followers;
mod layout;
mod pods;
mod target;
mod troubles;
