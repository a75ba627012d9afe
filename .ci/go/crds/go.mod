// Modules of which only files are used: the resource definitions of the operators that the chart has options for. A module
// of its own, so that what they depend on does not choose versions for the programs in .ci/go/tools.
module ballast/crds

go 1.27.3

require (
	github.com/cert-manager/cert-manager v1.21.2
	github.com/prometheus-operator/prometheus-operator v0.85.0
	sigs.k8s.io/lws v0.8.0
)
