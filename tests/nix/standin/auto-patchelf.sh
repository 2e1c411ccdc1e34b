# shellcheck shell=bash
# The function that nixpkgs' hook of this name offers, as far as a folder of wheels needs it: every program gets the
# store's loader, every program and library finds what it needs in its own tree or in buildInputs, else the build ends.
autoPatchelf() {
    local root=$1 glibc=@glibc@ file base found missing=0 library folder rpath
    declare -A provided=()
    local -a objects=()
    while IFS= read -r -d '' file; do
        if [ "$(head -c 4 "$file" | tr -d '\0')" = $'\x7fELF' ]; then objects+=("$file"); fi
    done < <(find "$root" -type f -print0 | sort -z)
    for folder in $(for library in ${buildInputs:-}; do echo "$library/lib"; done) "$glibc/lib"; do
        for file in "$folder"/*.so*; do
            base=${file##*/}
            provided[$base]=${provided[$base]:-$folder}
        done
    done
    while IFS= read -r -d '' file; do
        base=${file##*/}
        provided[$base]=${provided[$base]:-${file%/*}}
    done < <(find "$root" \( -name '*.so' -o -name '*.so.*' \) -print0 | sort -z)
    for file in "${objects[@]}"; do
        case $(head -c 18 "$file" | od -An -tu1 -j16 -N1 | tr -d ' ') in 2 | 3) ;; *) continue ;; esac
        rpath=
        for library in $(patchelf --print-needed "$file" 2>/dev/null); do
            found=${provided[$library]:-}
            if [ -z "$found" ]; then
                echo "$file: $library is not found" >&2
                missing=1
            elif [[ :$rpath: != *:$found:* ]]; then
                rpath=${rpath:+$rpath:}$found
            fi
        done
        if patchelf --print-interpreter "$file" >/dev/null 2>&1; then
            patchelf --set-interpreter "$(echo "$glibc"/lib/ld-linux-*.so.*)" "$file"
        fi
        if [ -n "$rpath" ]; then patchelf --set-rpath "$rpath" "$file"; fi
    done
    return $missing
}
