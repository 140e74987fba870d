#!/bin/sh
# MLflow's server of a team: runs in PostgreSQL, files in S3, a login. docs/scaling.md tells the whole story.
#   pip install 'xray-pneumonia[server,postgresql,s3]'
#   scripts/cluster/server.sh init FILE          write a file of settings, with secrets that only you can read; edit it
#   scripts/cluster/server.sh start FILE         run the server, until Ctrl-C or TERM
#   scripts/cluster/server.sh user FILE NAME     make a login; prints its password
#   scripts/cluster/server.sh backup FILE DIR    copy databases and files; the server may go on
#   scripts/cluster/server.sh restore FILE DIR   bring them back; stop the server first
#   scripts/cluster/server.sh upgrade FILE       after an update of the packages; stop the server, make a backup first
set -eu
umask 077

usage() {
    sed -n 's/^#   //p' "$0" >&2
    exit 2
}

random() { python3 -c 'import secrets; print(secrets.token_urlsafe(24))'; }

# What the environment has already is taken from there.
init() {
    [ ! -e "$file" ] || { echo "$file is there already; edit it, or name another" >&2; exit 2; }
    cat > "$file" <<SETTINGS
# Of the team's MLflow server; read by scripts/cluster/server.sh. Holds secrets.
MLFLOW_BACKEND_STORE_URI='${MLFLOW_BACKEND_STORE_URI:-postgresql+psycopg2://mlflow:PASSWORD@127.0.0.1/mlflow}'
# Also saved by backup, where it is set: the database of the sweeps.
XRAY_SWEEP_STORAGE='${XRAY_SWEEP_STORAGE:-}'
# Files go through the server, which alone needs a login at S3.
MLFLOW_ARTIFACTS_DESTINATION='${MLFLOW_ARTIFACTS_DESTINATION:-s3://BUCKET/mlflow}'
# Directly instead, with a login at S3 and xray-pneumonia[s3] on every machine: remove both #.
#MLFLOW_SERVE_ARTIFACTS=false
#MLFLOW_DEFAULT_ARTIFACT_ROOT=s3://BUCKET/mlflow
AWS_ACCESS_KEY_ID='${AWS_ACCESS_KEY_ID:-}'
AWS_SECRET_ACCESS_KEY='${AWS_SECRET_ACCESS_KEY:-}'
AWS_DEFAULT_REGION='${AWS_DEFAULT_REGION:-eu-central-1}'
# Of another S3 than Amazon's: MinIO, Ceph.
MLFLOW_S3_ENDPOINT_URL='${MLFLOW_S3_ENDPOINT_URL:-}'
# Names by which the server may be called, as they stand in its address; all others are refused.
MLFLOW_SERVER_ALLOWED_HOSTS='${MLFLOW_SERVER_ALLOWED_HOSTS:-mlflow.example.org,127.0.0.1:5000}'
MLFLOW_HOST='${MLFLOW_HOST:-127.0.0.1}'
MLFLOW_PORT='${MLFLOW_PORT:-5000}'
MLFLOW_WORKERS='${MLFLOW_WORKERS:-4}'
# A login over plain HTTP can be read on its way: put a proxy with TLS before it (nginx, Caddy), or remove the # here.
#MLFLOW_UVICORN_OPTS='--ssl-keyfile key.pem --ssl-certfile cert.pem'
# Of the first start; it changes nothing later.
MLFLOW_AUTH_ADMIN_USERNAME='admin'
MLFLOW_AUTH_ADMIN_PASSWORD='${MLFLOW_AUTH_ADMIN_PASSWORD:-$(random)}'
MLFLOW_FLASK_SERVER_SECRET_KEY='$(random)'
SETTINGS
    echo "Wrote $file. Edit it, then: $0 start $file"
}

# Whoever has a login may read all runs and log new ones; logins lie in the same database as the runs.
start() {
    MLFLOW_AUTH_CONFIG_PATH=$(mktemp)
    export MLFLOW_AUTH_CONFIG_PATH
    trap 'rm -f "$MLFLOW_AUTH_CONFIG_PATH"' EXIT
    printf '%s\n' '[mlflow]' 'default_permission = EDIT' 'auth_cache_ttl_seconds = 60' \
        'authorization_function = mlflow.server.auth:authenticate_request_basic_auth' \
        "database_uri = $(printf %s "$MLFLOW_BACKEND_STORE_URI" | sed 's/%/%%/g')" > "$MLFLOW_AUTH_CONFIG_PATH"
    unset MLFLOW_TRACKING_URI # of a client
    python3 -m mlflow server --app-name basic-auth &
    server=$!
    trap 'kill -TERM "$server" 2> /dev/null || true' TERM INT
    code=0
    wait "$server" || code=$?
    while kill -0 "$server" 2> /dev/null; do # a signal ended the first wait
        wait "$server" || code=$?
    done
    exit "$code"
}

# Asked once, and waited for: a second attempt would find the name taken, and its password would be nobody's.
user() {
    MLFLOW_HTTP_REQUEST_MAX_RETRIES=0 MLFLOW_HTTP_REQUEST_TIMEOUT=300 \
        MLFLOW_TRACKING_URI=${MLFLOW_TRACKING_URI:-http://127.0.0.1:$MLFLOW_PORT} \
        MLFLOW_TRACKING_USERNAME=$MLFLOW_AUTH_ADMIN_USERNAME MLFLOW_TRACKING_PASSWORD=$MLFLOW_AUTH_ADMIN_PASSWORD \
        python3 - "$argument" "$(random)" <<'PYTHON'
import os
import sys

from mlflow.server import get_app_client

name, password = sys.argv[1:]
get_app_client("basic-auth", tracking_uri=os.environ["MLFLOW_TRACKING_URI"]).create_user(name, password)
print(f"export MLFLOW_TRACKING_USERNAME={name} MLFLOW_TRACKING_PASSWORD={password}")
PYTHON
}

# Put a database's address into the variables of PostgreSQL's programs: in a command everybody could read its password.
connect() {
    bare=
    eval "$(URL=$1 python3 - <<'PYTHON'
import os
import shlex

from sqlalchemy.engine import make_url

url = make_url(os.environ["URL"])
known = {"HOST": url.host, "PORT": url.port, "USER": url.username, "PASSWORD": url.password, "DATABASE": url.database}
print("unset PGHOST PGPORT PGUSER PGPASSWORD PGDATABASE")
print(*(f"export PG{name}={shlex.quote(str(value))}" for name, value in known.items() if value is not None), sep="\n")
print(f"bare={shlex.quote(url.set(password=None).render_as_string())}")
PYTHON
)"
}

# Databases first: files that come later are only files without a run.
backup() {
    mkdir -p "$argument"
    connect "$MLFLOW_BACKEND_STORE_URI"
    pg_dump --format=custom --no-owner --file="$argument/mlflow.dump"
    if [ -n "${XRAY_SWEEP_STORAGE:-}" ]; then
        connect "$XRAY_SWEEP_STORAGE"
        pg_dump --format=custom --no-owner --file="$argument/sweeps.dump"
    fi
    copy "$MLFLOW_ARTIFACTS_DESTINATION" "$argument/artifacts"
}

# Files first, so that no run misses its own for a moment.
restore() {
    copy "$argument/artifacts" "$MLFLOW_ARTIFACTS_DESTINATION"
    connect "$MLFLOW_BACKEND_STORE_URI"
    pg_restore --clean --if-exists --no-owner --single-transaction --dbname="$PGDATABASE" "$argument/mlflow.dump"
    if [ -f "$argument/sweeps.dump" ]; then
        connect "${XRAY_SWEEP_STORAGE:?names the database for $argument/sweeps.dump}"
        pg_restore --clean --if-exists --no-owner --single-transaction --dbname="$PGDATABASE" "$argument/sweeps.dump"
    fi
}

copy() { aws ${MLFLOW_S3_ENDPOINT_URL:+--endpoint-url "$MLFLOW_S3_ENDPOINT_URL"} s3 sync --only-show-errors "$1" "$2"; }

upgrade() {
    connect "$MLFLOW_BACKEND_STORE_URI"
    python3 -m mlflow db upgrade "$bare"
    python3 -m mlflow.server.auth db upgrade --url "$bare"
    if [ -n "${XRAY_SWEEP_STORAGE:-}" ]; then
        connect "$XRAY_SWEEP_STORAGE"
        if [ -n "$(psql -Atc "select to_regclass('version_info')")" ]; then # else no sweep was run yet
            python3 -c "from optuna.cli import main; raise SystemExit(main())" storage upgrade --storage "$bare"
        fi
    fi
}

[ $# -ge 2 ] || usage
action=$1 file=$2 argument=${3:-}
case $action in
init) init && exit ;;
user | backup | restore) [ -n "$argument" ] || usage ;;
start | upgrade) ;;
*) usage ;;
esac
set -a
# shellcheck source=/dev/null
. "$(realpath "$file")"
set +a
[ -n "${MLFLOW_S3_ENDPOINT_URL:-}" ] || unset MLFLOW_S3_ENDPOINT_URL
"$action"
