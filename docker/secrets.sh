#!/bin/sh
# Writes docker/.env: a new secret for each service, and who owns the checkout. Never overwrites one.
set -eu
umask 077

here=$(cd "$(dirname "$0")" && pwd)
file=$here/.env
if [ -e "$file" ]; then
  echo "$file is there already and was left alone: the databases were made with its secrets." >&2
  exit 1
fi

owner=$(id -u):$(id -g)
if [ "$(id -u)" = 0 ]; then
  owner=10001:10001 # nothing runs as root
  echo "You are root, and the services run as 10001: chown -R 10001:10001 the checkout, for they write into it." >&2
fi

secret() { od -An -N 24 -tx1 /dev/urandom | tr -d ' \n'; }

cat >"$file.draft" <<EOF
# Secrets of this deployment: keep a copy, commit none. Written by secrets.sh.
POSTGRES_PASSWORD=$(secret)
RSPRUNE_POSTGRES_PASSWORD=$(secret)
MLFLOW_POSTGRES_PASSWORD=$(secret)
STORE_ACCESS_KEY=$(secret)
STORE_SECRET_KEY=$(secret)
# Whom what is made in the checkout belongs to.
RSPRUNE_UID=${owner%:*}
RSPRUNE_GID=${owner#*:}
# The folder that the services see as /corpus, read-only.
#RSPRUNE_CORPUS=/data/tiles
EOF
mkdir -p "$here/../.state/corpus" # else Docker makes it, as root
chmod a+rx "$here/databases.sh" # PostgreSQL's user reads it
mv "$file.draft" "$file"
echo "wrote $file"
