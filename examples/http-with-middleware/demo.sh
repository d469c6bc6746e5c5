#!/usr/bin/env bash
# An HTTP server behind rules about who may ask it for what, with real programs, on this machine:
#
#   examples/http-with-middleware/demo.sh [--keep] [--free-ports]
#
# Starts an HTTP server of Python's and the gateway of config.toml in front of it, on the loopback interface; asks with curl
# for what is allowed, and for what is not.
# Runs from any folder, leaves nothing behind; the options are those of examples/demo.bash.

source "$(dirname "${BASH_SOURCE[0]}")/../demo.bash"

readonly USER=testuser:testpass
readonly REQUESTS_A_MINUTE=30 # max_requests of the rule "pace"

main() {
    need curl
    ports HARMONY_HTTP_PORT=8080 HARMONY_ADMIN_PORT=9090 BACKEND_PORT=8888
    local server=http://127.0.0.1:$HARMONY_HTTP_PORT number

    step "A server, and the gateway in front of it"
    mkdir -p "$work/site/api/internal"
    echo '{"message": "Hello from Backend"}' | tee "$work/site/api/data.json" >"$work/site/api/internal/secret.json"
    start backend "$BACKEND_PORT" "$python" -m http.server --bind 127.0.0.1 --directory "$work/site" "$BACKEND_PORT"
    start_harmony gateway examples/http-with-middleware/config.toml

    step "What is allowed"
    http 200 -u "$USER" "$server/api/data.json"
    expect "message" "$(json 'it["message"]')" "Hello from Backend"
    http 200 -u "$USER" --head "$server/api/data.json"
    http 404 -u "$USER" "$server/api/nothing.json"

    step "Without credentials, and with wrong ones"
    http 401 "$server/api/data.json"
    expect "WWW-Authenticate" "$(header WWW-Authenticate | cut -d' ' -f1)" Basic
    http 401 -u testuser:wrong "$server/api/data.json"

    step "Paths that are not"
    http 404 -u "$USER" "$server/invalid/path"
    http 404 -u "$USER" "$server/api/internal/secret.json"
    http 404 -u "$USER" --path-as-is "$server/api/%2e%2e%2finternal"

    step "A method, and a type of content, that are not"
    http 405 -u "$USER" -X DELETE "$server/api/data.json"
    say "Allow: $(header Allow)"
    http 415 -u "$USER" "$server/api/data.json" -H "Content-Type: text/plain" -d hello
    say "$(cat "$work/last-output")"

    step "Clients behind a reverse proxy: one that is known, one that is not, one that claims to be"
    http 200 -u "$USER" "$server/api/data.json" -H "X-Forwarded-For: 192.0.2.7"
    http 403 -u "$USER" "$server/api/data.json" -H "X-Forwarded-For: 203.0.113.7"
    http 403 -u "$USER" "$server/api/data.json" -H "X-Forwarded-For: 192.0.2.7, 203.0.113.7"

    step "More than $REQUESTS_A_MINUTE requests a minute, of one client"
    for ((number = 0; number < REQUESTS_A_MINUTE; number++)); do
        curl --silent --noproxy '*' --output "$work/last-output" -u "$USER" "$server/api/data.json" -H "X-Forwarded-For: 192.0.2.8"
    done
    http 429 -u "$USER" "$server/api/data.json" -H "X-Forwarded-For: 192.0.2.8"
    [ "$(header Retry-After)" -le 60 ] || fail "Retry-After: $(header Retry-After)"
    http 200 -u "$USER" "$server/api/data.json" -H "X-Forwarded-For: 192.0.2.9"

    step "The management API"
    http 200 "http://127.0.0.1:$HARMONY_ADMIN_PORT/admin/info"
    http 200 "http://127.0.0.1:$HARMONY_ADMIN_PORT/health"
    stop gateway
}

demo "$@"
