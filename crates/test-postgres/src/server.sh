# Runs one PostgreSQL server in a folder of its own, as the user that it is started as, and obeys single words on its
# standard input. When that ends, however its owner ended, the server is stopped and the folder removed. Where the folder of
# another server is named, it is that one's standby. With a certificate in TLS_CERTIFICATE and its key in TLS_KEY it also
# listens on 127.0.0.1, at PGPORT, and speaks TLS there.
set -eu
bin=$1
primary=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
if [ "$primary" ]; then
    set -- "$bin/pg_basebackup" -D data -h "$primary" -U evergrant -c fast -R --no-sync
else
    set -- "$bin/initdb" -D data -U evergrant -A trust -E UTF8 --locale=C.UTF-8 --no-sync --no-instructions
fi
"$@" >made.log 2>&1 || {
    cat made.log >&2
    exit 1
}

set -- -c listen_addresses=
if [ "${TLS_KEY-}" ]; then
    (umask 077 && echo "$TLS_KEY" >tls.key && echo "$TLS_CERTIFICATE" >tls.crt)
    set -- -h 127.0.0.1 -c ssl=on -c ssl_cert_file="$folder/tls.crt" -c ssl_key_file="$folder/tls.key"
fi
# None of them has white space in it.
options=$*

start() {
    "$bin/postgres" -D data -k "$folder" $options -c fsync=off -c full_page_writes=off -c max_connections=500 \
        -c shared_buffers=64MB -c log_min_messages=fatal >>server.log 2>&1 &
    server=$!
    until "$bin/pg_isready" -q -h "$folder"; do
        kill -0 "$server" || { cat server.log >&2; exit 1; }
        sleep 0.05
    done
}

# INT: sessions are cut. QUIT: so is everything else, as in a crash.
stop() {
    kill -s "$1" "$server"
    wait "$server" || true
}

start
echo "$folder"
while read -r word; do
    case $word in
        start) start ;;
        stop) stop INT ;;
        crash) stop QUIT ;;
        promote) "$bin/pg_ctl" promote -D data >/dev/null ;;
    esac
    echo done
done
stop QUIT
