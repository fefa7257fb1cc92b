#!/bin/sh
# desap-cuda-check under each tool of compute-sanitizer, on small shapes. Arguments: the program, and part of a case's name.
#   sanitize.sh build-cuda/desap-cuda-check [name]
set -u
command -v compute-sanitizer > /dev/null || { echo 'skipped: compute-sanitizer is not installed'; exit 77; }
failed=0
for tool in memcheck racecheck synccheck initcheck; do
  echo "=== $tool"
  DESAP_SMALL=1 compute-sanitizer --tool "$tool" --error-exitcode 1 "$@" || failed=1
done
exit $failed
