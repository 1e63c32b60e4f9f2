// Keeps the picture of the rooms true: who may import whom, where effects happen, what is not done here at all, and that
// the README knows every close reason. Each check is a function of a list of files, so that it is itself tested below
// with files that break the rule.
import { describe, expect, test } from 'bun:test'
import { importsOf } from '../src/provision/imports.ts'
import { testIf } from './support.ts'

interface File {
  path: string
  text: string
}

// ---- the rules ----

/** Imports go downwards, or stay in the room. Rooms of the same line do not know each other. */
const FLOORS = [
  ['base'],
  ['config'],
  ['plan'],
  ['connections'],
  ['channel'],
  ['kernel', 'certificates'],
  ['user'],
  ['observe'],
  ['control', 'worker'],
  ['commands'],
  ['main'],
]
/** Files that stand beside the folders: the wiring of the processes, and what is above it. */
const TOP_FILES: Record<string, string> = {
  'src/control.ts': 'control',
  'src/worker.ts': 'worker',
  'src/main.ts': 'main',
  'src/program.ts': 'main',
  'src/demo.ts': 'main',
  'src/demo-backend.ts': 'main',
  'src/modules.ts': 'main',
  'src/index.ts': 'main',
  'src/routes.ts': 'main',
  'src/sockets.ts': 'main',
}
/** Rooms that could see each other by their floors and must not: the planes meet in control and worker only. */
const STRANGERS = [['user', 'kernel']]
/** Prepares machines; the program itself needs it only when asked to, so nothing but the command line may load it. */
const PROVISION = 'provision'
const PROVISION_USERS = ['src/main.ts', 'src/program.ts', 'src/demo.ts']

const BANNED: { call: RegExp; instead: string }[] = [
  { call: /\bexecSync\b/, instead: 'await $`…` of zx' },
  { call: /\bspawnSync\b/, instead: 'Bun.spawn and await its exited' },
  { call: /\breadFileSync\b/, instead: 'await Bun.file(path).text()' },
  { call: /\bwriteFileSync\b/, instead: 'await Bun.write(path, data)' },
  { call: /\bexistsSync\b/, instead: 'just do it and handle ENOENT: the answer may be old when you use it' },
  {
    call: /\b(?:access|appendFile|chmod|chown|copyFile|cp|execFile|fstat|fsync|lstat|mkdir|mkdtemp|open|opendir|read|readdir|readlink|realpath|rename|rm|rmdir|stat|statfs|symlink|truncate|unlink|utimes|write)Sync\b/,
    instead: 'what node:fs/promises has: the whole gateway would wait for a disk',
  },
  { call: /\bwhile\s*\(\s*Date\.now\(/, instead: 'await the event, with one timer as its limit' },
]

/** Which files may have which effect; an entry that ends in / allows a folder. */
const EFFECTS: { effect: string; uses: RegExp; only: string[] }[] = [
  { effect: 'bun:ffi', uses: /['"]bun:ffi['"]/, only: ['src/base/native.ts'] },
  {
    effect: 'starting processes',
    uses: /['"](?:node:)?child_process['"]|['"]zx['"]|\bBun\.(?:spawn|\$)|\bspawn\b[^;]*from ['"]bun['"]/,
    only: [
      'src/kernel/nft.ts',
      'src/kernel/anchor.ts',
      'src/kernel/sysctl.ts',
      'src/config/load.ts',
      'src/control.ts',
      'src/control/supervisor.ts',
      'src/control/handover.ts',
      'src/control/descriptor-store.ts',
      'src/demo.ts',
      'src/provision/',
    ],
  },
  { effect: 'Bun.listen', uses: /\bBun\.listen\b/, only: ['src/user/'] },
  { effect: 'Bun.connect', uses: /\bBun\.connect\b/, only: ['src/user/', 'src/channel/', 'src/kernel/conntrack.ts'] },
  { effect: 'Redis', uses: /\bRedisClient\b|\bBun\.redis\b/, only: ['src/certificates/redis-connection.ts'] },
  { effect: 'Bun.serve', uses: /\bBun\.serve\b/, only: ['src/observe/', 'src/demo-backend.ts'] },
  {
    effect: 'effects of Bun under another name',
    uses: /import\s*\{[^}]*(?:\$|\b(?:spawn|listen|connect|serve)\b)[^}]*\}\s*from\s*['"]bun['"]|\{[^}]*\}\s*=\s*Bun\b(?!\.)/,
    only: [],
  },
]

// ---- the checks: files in, sentences out ----

const roomOf = (path: string): string | undefined => TOP_FILES[path] ?? /^src\/([^/]+)\//.exec(path)?.[1]
/** Types for what has none (Bun's undocumented abilities, assets): no code, so in no room. */
const isDeclaration = (path: string) => path.endsWith('.d.ts')
const floorOf = (room: string) => FLOORS.findIndex((rooms) => rooms.includes(room))

function wrongImports(files: File[]): string[] {
  return files.flatMap(({ path, text }) => {
    const room = roomOf(path)
    if (room === PROVISION || isDeclaration(path)) return []
    if (room === undefined || floorOf(room) < 0)
      return [`${path} stands in no room: name it in test/architecture.test.ts`]
    return importsOf(path, text).flatMap(({ to, dynamic }) => {
      const other = roomOf(to)
      if (!to.startsWith('src/') || other === room) return []
      const problem = whyNot(path, room, other, dynamic)
      return problem ? [`${path} imports ${to}: ${problem}`] : []
    })
  })
}

function whyNot(path: string, room: string, other: string | undefined, dynamic: boolean): string | undefined {
  if (other === undefined) return 'which stands in no room'
  if (other === PROVISION) {
    return dynamic && PROVISION_USERS.includes(path)
      ? undefined
      : `only ${PROVISION_USERS.join(' and ')} may, with import()`
  }
  if (floorOf(other) >= floorOf(room)) return `${room} does not stand above ${other}`
  if (STRANGERS.some((pair) => pair.includes(room) && pair.includes(other))) return `${room} and ${other} never meet`
  return undefined
}

function importCycles(files: File[]): string[] {
  const imports = new Map(files.map(({ path, text }) => [path, importsOf(path, text).map(({ to }) => to)]))
  const done = new Set<string>()
  const cycles: string[] = []
  const visit = (path: string, trail: string[]) => {
    const start = trail.indexOf(path)
    if (start >= 0) cycles.push([...trail.slice(start), path].join(' → '))
    if (start >= 0 || done.has(path)) return
    for (const to of imports.get(path) ?? []) visit(to, [...trail, path])
    done.add(path)
  }
  for (const { path } of files) visit(path, [])
  return cycles
}

/** The code without its comments and types, which may name anything. */
const transpiler = new Bun.Transpiler({ loader: 'ts', target: 'bun' })
function codeOf({ path, text }: File): string {
  if (isDeclaration(path)) return ''
  try {
    return transpiler.transformSync(text)
  } catch (cause) {
    throw new Error(`${path} does not parse`, { cause })
  }
}

function bannedCalls(files: File[]): string[] {
  return files
    .filter(({ path }) => roomOf(path) !== PROVISION)
    .flatMap((file) => {
      const code = codeOf(file)
      return BANNED.flatMap(({ call, instead }) => {
        const found = call.exec(code)
        return found ? [`${file.path} uses ${found[0]}; use ${instead}`] : []
      })
    })
}

function strayEffects(files: File[]): string[] {
  return files.flatMap((file) => {
    const code = codeOf(file)
    return EFFECTS.filter(({ uses, only }) => uses.test(code) && !only.some((place) => isIn(file.path, place))).map(
      ({ effect, only }) =>
        `${file.path}: ${effect} only in ${only.join(', ') || 'no file: write Bun.… so that it can be found'}`,
    )
  })
}

const isIn = (path: string, place: string) => (place.endsWith('/') ? path.startsWith(place) : path === place)

/** The first thing a reader sees says what the file is for. */
const withoutOpening = (files: File[]) =>
  files
    .filter(({ text }) => !/^(?:#!.*\n)?(?:\/\/|\/\*+)\s*\S+ \S+/.test(text))
    .map(({ path }) => `${path} does not open with a comment that says what it is for`)

const undocumented = (names: string[], readme: string) => names.filter((name) => !readme.includes(`\`${name}\``))

// ---- this project ----

const sources = await Promise.all(
  [...new Bun.Glob('src/**/*.ts').scanSync()].sort().map(async (path) => ({ path, text: await Bun.file(path).text() })),
)

describe('src', () => {
  test('was found, in most of its rooms', () => {
    expect(sources.length).toBeGreaterThanOrEqual(20)
    expect(sources.map(({ path }) => path)).toContain('src/base/native.ts')
    const rooms = new Set(sources.map(({ path }) => roomOf(path)))
    expect(rooms.size).toBeGreaterThanOrEqual(6)
    const imports = sources.flatMap(({ path, text }) => importsOf(path, text)).filter(({ to }) => to.startsWith('src/'))
    expect(imports.length).toBeGreaterThanOrEqual(20)
  })
  test('imports go one way', () => expect(wrongImports(sources)).toEqual([]))
  test('imports make no circles', () => expect(importCycles(sources)).toEqual([]))
  test('K1: banned calls are not made', () => expect(bannedCalls(sources)).toEqual([]))
  test('effects happen where they are expected', () => expect(strayEffects(sources)).toEqual([]))
  test('every file opens with what it is for', () => expect(withoutOpening(sources)).toEqual([]))
})

describe('README.md', async () => {
  const readme = Bun.file('README.md')
  testIf(await readme.exists(), 'there is no README.md yet')(
    'knows every reason of a close and of a refusal',
    async () => {
      const { reasons, refusals } = await import('../src/connections/reasons.ts')
      const names = [...Object.keys(reasons), ...Object.keys(refusals)]
      expect(names.length).toBeGreaterThan(20)
      expect(undocumented(names, await readme.text())).toEqual([])
    },
  )
})

// ---- the checks find what they are for ----

describe('the checks report', () => {
  const file = (path: string, text: string): File => ({ path, text })

  test('an import upwards, sideways or out of the picture', () => {
    const found = wrongImports([
      file('src/base/a.ts', "import { b } from '../plan/b.ts'\n"),
      file('src/user/a.ts', "import type { Flow } from '../kernel/conntrack.ts'\n"),
      file('src/kernel/a.ts', "export * from '../certificates/store.ts'\n"),
      file('src/kernel/b.ts', "import {\n  one,\n  two,\n} from '../user/b.ts'\n"),
      file('src/control.ts', "import './worker.ts'\n"),
      file('src/plan/a.ts', "const a: import('../observe/log.ts').Log = 1\n"),
      file('src/main.ts', "import '../src/provision/apt.ts'\n"),
      file('src/config/a.ts', "await import('../provision/apt.ts')\n"),
      file('src/helpers/a.ts', ''),
      file('src/base/b.ts', "import '../helpers.ts'\n"),
    ])
    expect(found).toEqual([
      'src/base/a.ts imports src/plan/b.ts: base does not stand above plan',
      'src/user/a.ts imports src/kernel/conntrack.ts: user and kernel never meet',
      'src/kernel/a.ts imports src/certificates/store.ts: kernel does not stand above certificates',
      'src/kernel/b.ts imports src/user/b.ts: kernel does not stand above user',
      'src/control.ts imports src/worker.ts: control does not stand above worker',
      'src/plan/a.ts imports src/observe/log.ts: plan does not stand above observe',
      'src/main.ts imports src/provision/apt.ts: only src/main.ts and src/program.ts and src/demo.ts may, with import()',
      'src/config/a.ts imports src/provision/apt.ts: only src/main.ts and src/program.ts and src/demo.ts may, with import()',
      'src/helpers/a.ts stands in no room: name it in test/architecture.test.ts',
      'src/base/b.ts imports src/helpers.ts: which stands in no room',
    ])
  })

  test('but not what is allowed', () => {
    const found = wrongImports([
      file('src/user/a.ts', "import './b.ts'\nimport { c } from '../certificates/c.ts'\nimport { z } from 'zod'\n"),
      file('src/kernel/a.ts', "import nft from '../../nft/sluice.nft' with { type: 'text' }\n"),
      file('src/main.ts', "const { demo } = await import('./demo.ts')\nawait import('./provision/apt.ts')\n"),
      file('src/index.ts', "export { start } from './control.ts'\n"),
      file('src/base/a.ts', "// not imported: import '../user/b.ts'\n * import('../user/b.ts')\n"),
    ])
    expect(found).toEqual([])
  })

  test('a circle of imports, with its way', () => {
    const a = file('src/plan/a.ts', "import type { B } from './b.ts'\n")
    const b = file('src/plan/b.ts', "import { c } from './c.ts'\n")
    const c = file('src/plan/c.ts', "import { a } from './a.ts'\nimport './d.ts'\n")
    const d = file('src/plan/d.ts', '')
    expect(importCycles([a, b, c, d])).toEqual(['src/plan/a.ts → src/plan/b.ts → src/plan/c.ts → src/plan/a.ts'])
    expect(importCycles([a, b, d])).toEqual([])
  })

  test('a banned call, with what to use', () => {
    const found = bannedCalls([
      file('src/kernel/a.ts', "import { readFileSync } from 'node:fs'\nexport const a = readFileSync('/a')\n"),
      file('src/kernel/b.ts', 'while (Date.now() < later) {}\n'),
      file('src/kernel/c.ts', "Bun.spawnSync(['nft'])\n"),
      file('src/kernel/d.ts', '// existsSync would be wrong here\nexport {}\n'),
      file('src/provision/e.ts', "existsSync('/a')\n"),
    ])
    expect(found).toEqual([
      'src/kernel/a.ts uses readFileSync; use await Bun.file(path).text()',
      'src/kernel/b.ts uses while (Date.now(; use await the event, with one timer as its limit',
      'src/kernel/c.ts uses spawnSync; use Bun.spawn and await its exited',
    ])
    for (const name of ['execSync', 'writeFileSync', 'existsSync', 'statSync', 'readdirSync', 'execFileSync'])
      expect(bannedCalls([file('src/kernel/a.ts', `${name}('a')`)])).toHaveLength(1)
  })

  test('an effect in a file that is not named for it', () => {
    const strays = [
      "import { dlopen } from 'bun:ffi'\ndlopen()\n",
      "import { spawn } from 'node:child_process'\nspawn('a')\n",
      "import { $ } from 'zx'\nawait $`a`\n",
      "Bun.spawn(['a'])\n",
      'await Bun.$`a`\n',
      'Bun.listen({})\n',
      'Bun.connect({})\n',
      'Bun.serve({})\n',
      "import { listen } from 'bun'\nlisten({})\n",
      "import { $ } from 'bun'\nawait $`a`\n",
      'const { serve } = Bun\nserve({})\n',
    ]
    for (const text of strays) expect(strayEffects([file('src/plan/a.ts', text)]), text).toHaveLength(1)
    const allowed = [
      file('src/base/native.ts', "import { dlopen } from 'bun:ffi'\ndlopen()\n"),
      file('src/kernel/nft.ts', "import { $ } from 'zx'\nawait $`nft`\n"),
      file('src/user/deep/listen.ts', 'Bun.listen({})\nBun.connect({})\n'),
      file(
        'src/plan/a.ts',
        "// Bun.serve is not for here\nimport type { spawn } from 'bun'\ntype A = ReturnType<typeof Bun.connect>\n",
      ),
    ]
    expect(strayEffects(allowed)).toEqual([])
  })

  test('a file without an opening, and a reason the README does not know', () => {
    expect(withoutOpening([file('src/a.ts', "import 'a'\n// late words\n")])).toHaveLength(1)
    expect(withoutOpening([file('src/a.ts', '//\n')])).toHaveLength(1)
    expect(withoutOpening([file('src/a.ts', '// What it is for.\n'), file('src/b.ts', '/** Well said. */\n')])).toEqual(
      [],
    )
    expect(undocumented(['finished', 'killed'], '| `finished` | … |, nobody is killed')).toEqual(['killed'])
  })
})
