// The commands that make clients trust the local authority. Pure.
import type { AuthorityView } from '../certificates/index.ts'

/** By what trusts it then. The directory of the authority is closed to everybody else, so all of them begin with a copy. */
export function trustCommands({ path, name }: Pick<AuthorityView, 'path' | 'name'>): Record<string, string[]> {
  const copy = `${name.replace(/[^A-Za-z0-9]+/g, '-')}.crt`
  const nickname = quoted(name)
  return {
    'A copy to take to the clients (it holds no secret)': [`sudo sluice certificates trust --pem > ${copy}`],
    'This machine (Debian), for curl and everything else that uses its authorities': [
      `sudo install -m 644 ${quoted(path)} /usr/local/share/ca-certificates/${copy}`,
      'sudo update-ca-certificates',
    ],
    'curl, without trusting it anywhere': [`curl --cacert ${copy} https://…`],
    'Chromium (apt-get install libnss3-tools)': [
      `certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n ${nickname} -i ${copy}`,
    ],
    'Firefox, each profile': [
      `for profile in ~/.mozilla/firefox/*/cert9.db; do certutil -d sql:$(dirname "$profile") -A -t C,, -n ${nickname} -i ${copy}; done`,
    ],
  }
}

const quoted = (text: string) => (/^[\w./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`)
