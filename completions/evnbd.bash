# SPDX-License-Identifier: BSD-3-Clause
# Completion of evnbd for bash. The program itself tells which options there are: one a line, its
# long name, letter, argument and words separated by tabs.

_evnbd_suggest()
{
    local argument=$1 words=$2 current=$3

    if [[ $words ]]; then
        mapfile -t COMPREPLY < <(compgen -W "${words//,/ }" -- "$current")
        return
    fi
    case $argument in
    PATH | FILE)
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        ;;
    DIR)
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -d -- "$current")
        ;;
    esac
}

_evnbd()
{
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local line name letter argument words names=()

    # bash splits --name=value at the '='.
    if [[ $current == = ]]; then
        current=
    elif [[ $previous == = ]]; then
        previous=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    COMPREPLY=()
    while IFS= read -r line; do
        name=${line%%$'\t'*} line=${line#*$'\t'}
        letter=${line%%$'\t'*} line=${line#*$'\t'}
        argument=${line%%$'\t'*} words=${line#*$'\t'}
        if [[ $argument && ($previous == "$name" || $previous == "$letter") ]]; then
            _evnbd_suggest "$argument" "$words" "$current"
            return
        fi
        names+=("$name${argument:+=}")
    done < <("${COMP_WORDS[0]}" --list-options 2>/dev/null)
    if [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "${names[*]}" -- "$current")
        [[ ${COMPREPLY[0]-} != *= ]] || compopt -o nospace
    else
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
    fi
}

complete -F _evnbd evnbd
