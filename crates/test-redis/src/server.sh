# Runs one Redis server in a folder of its own, on 127.0.0.1 at PORT, and obeys single words on its standard input. When that
# ends, however its owner ended, the server is stopped and the folder removed. It keeps nothing on disk: a stop loses all.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

start() {
    tries=0
    until serve; do
        # Somebody else may have the port for a moment, while the server is away.
        tries=$((tries + 1))
        [ "$tries" -lt 100 ] || { cat server.log >&2; exit 1; }
        sleep 0.1
    done
}

# Returns as soon as it answers, or has ended without.
serve() {
    redis-server --bind 127.0.0.1 --port "$PORT" --unixsocket "$folder/socket" --save '' --appendonly no \
        --dir "$folder" --loglevel warning >server.log 2>&1 &
    server=$!
    until [ "$(redis-cli -s socket ping 2>&1)" = PONG ]; do
        kill -0 "$server" 2>/dev/null || return 1
        sleep 0.02
    done
}

# At once, as a crash would.
stop() {
    kill -s KILL "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
}

start
echo "$folder"
while read -r word; do
    case $word in
        start) start ;;
        stop) stop ;;
        freeze) kill -s STOP "$server" ;;
        thaw) kill -s CONT "$server" ;;
    esac
    echo done
done
stop
