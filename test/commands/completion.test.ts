// What completion offers, and that bash, zsh and fish offer it: each shell runs with its script, and with the program behind it.
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { chmod, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { complete } from '../../src/commands/completion/candidates.ts'
import { scriptFor, SHELLS, type Shell } from '../../src/commands/completion/scripts.ts'
import { makeProgram } from '../../src/program.ts'
import { testIf } from '../support.ts'

const at = (...words: string[]) => complete(makeProgram(), words)
const values = (...words: string[]) => at(...words).candidates.map(({ value }) => value)

describe('what could stand there', () => {
  test('the commands that people use', () => {
    const commands = values('')
    expect(commands).toContain('top')
    expect(commands).toContain('completion')
    for (const hidden of ['worker', 'evaluate', 'complete']) expect(commands).not.toContain(hidden)
    expect(at('').candidates.every(({ description }) => description !== '')).toBe(true)
  })
  test('the options of a command, also after others', () => {
    expect(values('top', '--')).toEqual(expect.arrayContaining(['--interval', '--json', '--admin', '--tab']))
    expect(values('status', '--json', '--admin', '/x', '-')).toContain('--json')
    expect(values('top', '--', '--')).not.toContain('--json')
  })
  test('the values of an option: choices, names, files', () => {
    expect(values('top', '--tab', '')).toEqual(['routes', 'connections', 'clients', 'targets'])
    expect(at('top', '--tab=c')).toMatchObject({ prefix: '--tab=', candidates: [{ value: 'routes' }, {}, {}, {}] })
    expect(at('top', '--route', '')).toMatchObject({ ask: ['routes'], files: false, candidates: [] })
    expect(at('top', '--client', '10.')).toMatchObject({ ask: ['clients'] })
    expect(at('run', '--config', 'a')).toMatchObject({ files: true, ask: [] })
    expect(at('run', '-c', '')).toMatchObject({ files: true })
  })
  test('the arguments of a command', () => {
    expect(at('drain', '')).toMatchObject({ ask: ['routes', 'targets'] })
    expect(at('drain', 'web', '')).toMatchObject({ ask: [] })
    expect(at('close', '--admin', '/run/a.sock', '')).toMatchObject({
      ask: ['connections'],
      options: { admin: '/run/a.sock' },
    })
    expect(at('drain', '--config=/etc/a.ts', '').options).toEqual({ config: '/etc/a.ts' })
    expect(values('completion', '')).toEqual([...SHELLS])
    expect(at('init', '')).toMatchObject({ files: true })
  })
  test('words that nobody knows lead nowhere, and no further', () => {
    expect(values('nonsense', '')).toEqual([])
    expect(values('status', '--nonsense', 'x', '')).toEqual([])
  })
})

describe('in the shell', () => {
  let directory: string
  let gateway: ReturnType<typeof Bun.serve>
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'sluice-completion-'))
    const program = `#!/bin/sh\nexec ${process.execPath} ${resolve(import.meta.dir, '../../src/main.ts')} "$@"\n`
    await Bun.write(join(directory, 'sluice'), program)
    await chmod(join(directory, 'sluice'), 0o755)
    await Bun.write(join(directory, 'sluice.config.ts'), '')
    for (const shell of SHELLS) await Bun.write(join(directory, `script.${shell}`), scriptFor(shell))
    gateway = Bun.serve({
      unix: join(directory, 'admin.sock'),
      routes: {
        '/v1/routes': Response.json({
          routes: [
            { name: 'web', reason: 'nothing has to be read: forwarded' },
            { name: 'web:two', reason: '' },
            { name: 'bad name\n', reason: '' },
          ],
        }),
        '/v1/targets': Response.json({ targets: [{ target: '10.0.0.5:80' }, { target: '10.0.0.5:80' }] }),
      },
    })
  })
  afterAll(async () => {
    await gateway.stop(true)
    await rm(directory, { recursive: true })
  })

  const run = async (command: string[]) => {
    const env = { ...process.env, PATH: `${directory}:${process.env.PATH}`, HOME: directory, NO_COLOR: '1' }
    const shell = Bun.spawn(command, { cwd: directory, env, stdin: 'ignore', stdout: 'pipe', stderr: 'pipe' })
    const [out, err] = await Promise.all([new Response(shell.stdout).text(), new Response(shell.stderr).text()])
    expect(err).toBe('')
    await shell.exited
    return out.split('\n').filter(Boolean)
  }
  // bash calls the function as readline would: with the line, and what it takes for the word under the cursor.
  const inBash = (line: string) =>
    run([
      'bash',
      '--norc',
      '-c',
      `source script.bash; compopt() { :; }
       COMP_LINE=$1; COMP_POINT=\${#COMP_LINE}; _sluice sluice "$2" ''; printf '%s\\n' "\${COMPREPLY[@]}"`,
      'bash',
      line,
      line.split(/[\s:=]/).at(-1)!,
    ])
  const inFish = (line: string) =>
    run(['fish', '--no-config', '-c', `source script.fish; complete -C '${line}'`]).then((lines) =>
      lines.map((one) => one.split('\t')[0]!),
    )
  // zsh completes only in its line editor; here it says what it would offer.
  const inZsh = (line: string) =>
    run([
      'zsh',
      '-f',
      '-c',
      `compdef() { :; }; source script.zsh
       _describe() { print -l -- \${\${candidates//\\\\:/@}%%:*}; }; _files() { print -l -- *; }
       words=(\${(Q)\${(z)1}}); [[ $1 == *' ' ]] && words+=(''); CURRENT=$#words; _sluice`,
      'zsh',
      line,
    ]).then((lines) => lines.map((one) => one.replaceAll('@', ':')))

  const shells: Record<Shell, (line: string) => Promise<string[]>> = { bash: inBash, zsh: inZsh, fish: inFish }
  for (const [shell, offered] of Object.entries(shells))
    testIf(Bun.which(shell) !== null, `${shell} is not installed`)(
      `${shell} offers commands, options, names of the gateway, and files`,
      async () => {
        const admin = `--admin ${directory}/admin.sock`
        const [commands, options, routes, colons, choices, files, nobody] = await Promise.all([
          offered('sluice sta'),
          offered('sluice top --in'),
          offered(`sluice drain ${admin} `),
          offered(`sluice drain ${admin} web:`),
          offered('sluice completion '),
          offered('sluice run --config slu'),
          offered('sluice drain --admin /nowhere '),
        ])
        expect(commands).toEqual(['status'])
        expect(options).toEqual(['--interval'])
        expect(routes.toSorted()).toEqual(['10.0.0.5:80', 'web', 'web:two'])
        // bash puts what it is given after the last colon.
        expect(colons).toEqual([shell === 'bash' ? 'two' : 'web:two'])
        expect(choices.toSorted()).toEqual(['bash', 'fish', 'zsh'])
        expect(files).toContain('sluice.config.ts')
        expect(nobody).toEqual([])
      },
    )
})
