#!/usr/bin/env bash
# Transformers' own test mixins against Arlow. Arguments go to pytest (-k name, -x, ...).
set -euo pipefail
exec python "$(dirname "${BASH_SOURCE[0]}")/run.py" "$@"
