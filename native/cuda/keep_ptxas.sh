#!/bin/sh
# Runs the compiler and keeps what ptxas reports (registers, spills, ...) in OBJECT.ptxas, where OBJECT follows -o. Only what is
# no such report is printed.
object=
previous=
for argument; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
[ -n "$object" ] || exec "$@"
mkdir -p "$(dirname "$object")"
"$@" > "$object.ptxas" 2>&1
code=$?
if [ $code != 0 ]; then cat "$object.ptxas"
else grep -v -e '^ptxas info' -e 'bytes stack frame, ' "$object.ptxas"; fi
exit $code
