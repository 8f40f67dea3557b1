#!/bin/sh
# Runs etcd and the server that build.sh made, until it is ended: run.sh DIR [ADDRESS]. Prints the kubeconfig's path when the
# server is ready; what was stored before is gone.
set -eu
cd "$1"
address=${2:-127.0.0.1}
rm -rf data certs
bin/etcd --data-dir=data --listen-client-urls=http://127.0.0.1:23790 --advertise-client-urls=http://127.0.0.1:23790 \
    --listen-peer-urls=http://127.0.0.1:23800 --unsafe-no-fsync > etcd.log 2>&1 &
etcd=$!
server=
end() { [ -z "$server" ] || kill "$server" && wait "$server" || :; kill "$etcd" && wait "$etcd" || :; }
trap end EXIT
trap 'exit 1' INT TERM
cat > kubeconfig <<END
apiVersion: v1
kind: Config
current-context: upstream
clusters: [{name: upstream, cluster: {server: "https://$address:16443", insecure-skip-tls-verify: true}}]
users: [{name: upstream, user: {token: t0ken}}]
contexts: [{name: upstream, context: {cluster: upstream, user: upstream}}]
END
bin/upstream --etcd http://127.0.0.1:23790 --address "$address" --port 16443 > server.log 2>&1 &
server=$!
until bin/kubectl --kubeconfig kubeconfig get --raw /readyz > /dev/null 2>&1; do
    kill -0 "$server" 2> /dev/null || { tail -n 3 server.log >&2; exit 1; }
    sleep 1
done
echo "$PWD/kubeconfig"
wait "$server"
