// What a shell has to know to complete sluice: each script asks the program itself, so it is right for whichever version runs.

export const SHELLS = ['bash', 'zsh', 'fish'] as const
export type Shell = (typeof SHELLS)[number]

/** A line of an answer that is no candidate: names of files are wanted. */
export const FILES = ':files'

// The words are read from the line: bash itself would cut them at ":" and "=", and gives back what follows the last of those.
const BASH = `# Completion of sluice for bash: source <(sluice completion bash)
_sluice() {
  local line=\${COMP_LINE:0:COMP_POINT} words current begun value
  read -ra words <<<"$line"
  [[ $line == *[[:space:]] ]] && words+=('')
  current=\${words[-1]}
  begun=\${current%"\${current##*[:=]}"}
  COMPREPLY=()
  while IFS=$'\\t' read -r value _; do
    if [[ $value == ${FILES} ]]; then
      compopt -o filenames
      while read -r value; do COMPREPLY+=("$value"); done < <(compgen -f -- "\${current#"$begun"}")
    elif [[ $value == "$current"* ]]; then
      printf -v value %q "\${value#"$begun"}"
      COMPREPLY+=("$value")
    fi
  done < <("$1" complete -- "\${words[@]:1}" 2>/dev/null)
}
complete -F _sluice sluice
`

const ZSH = `#compdef sluice
# Completion of sluice for zsh: source <(sluice completion zsh), or a file _sluice in a directory of $fpath.
_sluice() {
  local line value description
  local -a candidates
  for line in "\${(@f)$("\${words[1]}" complete -- "\${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
    value=\${line%%$'\\t'*}
    description=
    [[ $line == *$'\\t'* ]] && description=\${line#*$'\\t'}
    case $value in
      '') ;;
      ${FILES}) _files ;;
      *) candidates+=("\${value//:/\\\\:}\${description:+:$description}") ;;
    esac
  done
  (( $#candidates )) && _describe -V sluice candidates
}
if [[ $funcstack[1] == _sluice ]]; then _sluice "$@"; else compdef _sluice sluice; fi
`

const FISH = `# Completion of sluice for fish: sluice completion fish | source
function __sluice_complete
  set -l words (commandline -opc)
  set -l current (commandline -ct)
  set -l program $words[1]
  set -e words[1]
  for line in ($program complete -- $words "$current" 2>/dev/null)
    if test "$line" = ${FILES}
      __fish_complete_path "$current"
    else
      echo $line
    end
  end
end
complete -c sluice -f -a '(__sluice_complete)'
`

const SCRIPTS: Record<Shell, string> = { bash: BASH, zsh: ZSH, fish: FISH }

export const scriptFor = (shell: Shell) => SCRIPTS[shell]
