# Compares the signed package indexes that apt has just fetched with the lock. $1: the tree.
set -eu
while read -r suite locked; do
    for list in "$1"/var/lib/apt/lists/*_dists_"$(echo "$suite" | tr / _)"_InRelease; do
        now=$(sha256sum "$list" | cut -d ' ' -f 1)
        if [ "$now" != "$locked" ]; then
            echo "no43: index $suite $locked $now" >&2
            exit 1
        fi
    done
done < "$1/tmp/no43/indexes"
