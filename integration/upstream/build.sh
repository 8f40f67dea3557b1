#!/bin/sh
# Builds the API server of main.go, and fetches the etcd and kubectl of its age, from packages of Debian unstable, into a
# folder that nothing else uses: build.sh DIR. Nothing is installed. About 3 GB and ten minutes on two processors.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
dir=$(cd "$1" && pwd)
cd "$dir"
mkdir -p apt/lists/partial apt/archives/partial debs root/etc src/upstream bin
: > apt/status
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian sid main" > apt/sources.list
cat > apt/conf <<END
Dir::State "$dir/apt";
Dir::State::status "$dir/apt/status";
Dir::Cache "$dir/apt";
Dir::Etc::sourcelist "$dir/apt/sources.list";
Dir::Etc::sourceparts "/nonexistent";
APT::Install-Recommends "false";
END
export APT_CONFIG="$dir/apt/conf"
apt-get update -qq
go=$(apt-cache pkgnames golang-1. | sed -n 's/^\(golang-1\.[0-9]*\)-go$/\1/p' | sort -V | head -n 1)
wanted="golang-k8s-apiextensions-apiserver-dev $go-go etcd-server kubectl"
# shellcheck disable=SC2086
apt-get install --print-uris -y $wanted | sed -n "s/^'\([^']*\)'.*/\1/p" |
    grep -E '/(golang-|etcd-server_|kubectl_)' > urls
(cd debs && xargs -n 1 -P 4 curl -fsS --retry 3 -O < ../urls)
for deb in debs/*.deb; do dpkg -x "$deb" root; done
cp root/usr/bin/etcd root/usr/bin/kubectl bin/
cp "$here/main.go" src/upstream/
export GO111MODULE=off GOTOOLCHAIN=local CGO_ENABLED=0
export GOROOT="$dir/root/usr/lib/go-${go#golang-}"
export GOPATH="$dir:$dir/root/usr/share/gocode" PATH="$GOROOT/bin:$PATH"
go build -o bin/openapi-gen k8s.io/kube-openapi/cmd/openapi-gen
: > empty
(
    cd root/usr/share/gocode/src
    "$dir/bin/openapi-gen" --go-header-file "$dir/empty" --output-dir "$dir/src/upstream/gen" --output-pkg upstream/gen \
        --output-file definitions.go --report-filename /dev/null \
        k8s.io/api/core/v1 k8s.io/api/apps/v1 k8s.io/api/coordination/v1 k8s.io/api/discovery/v1 k8s.io/api/networking/v1 \
        k8s.io/apimachinery/pkg/apis/meta/v1 k8s.io/apimachinery/pkg/api/resource k8s.io/apimachinery/pkg/runtime \
        k8s.io/apimachinery/pkg/util/intstr k8s.io/apimachinery/pkg/version
)
(cd src/upstream && go build -o "$dir/bin/upstream" .)
echo "$dir/bin/upstream"
