#!/usr/bin/env bash
# Finds or fetches the browser of tests/browser: a Chromium on PATH, else Playwright's own, else Debian's package where
# this is root. Run by `make test`; it never fails, for without a browser those tests are skipped and say so (in CI they fail).
set -uo pipefail
cd "$(dirname "$0")/.."

PATIENCE_S=300  # Playwright's Chromium is 170 MB

say() { printf '  %s\n' "$*"; }
is_there() { .venv/bin/python -m tests.browser.chromium >/dev/null 2>&1; }

is_there && exit
say "no Chromium on PATH: fetching Playwright's own"
timeout $PATIENCE_S .venv/bin/python -m playwright install chromium-headless-shell >/dev/null 2>&1
is_there && exit
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "Playwright's could not be fetched or lacks libraries of this machine: installing Debian's chromium"
    { apt-get update && apt-get install --yes --no-install-recommends chromium; } >/dev/null 2>&1
    is_there && exit
fi
say "no browser: the tests in tests/browser will be skipped. apt-get install chromium, as root, brings one."
