// The relay under gcc's sanitizers: `bun test/native/sanitize.ts`. Not one of the tests, because it takes a minute; to be run
// when native/relay*.c has changed. First a program in C with threads of callers, clients and targets, once for races and once
// for memory and leaks; then the relay's tests against a library that is built for the latter.
import { cp, mkdir, mkdtemp, rm, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { $ } from 'bun'

const root = join(import.meta.dir, '../..')
const FLAGS = ['-std=gnu11', '-O1', '-g', '-Wall', '-Wextra', '-fno-omit-frame-pointer', '-pthread']
const MEMORY = '-fsanitize=address,undefined'
const sources = (await Array.fromAsync(new Bun.Glob('native/*.c').scan(root))).map((path) => join(root, path))

const folder = await mkdtemp(join(tmpdir(), 'sanitize-'))
try {
  for (const sanitizer of ['-fsanitize=thread', MEMORY]) {
    const program = join(folder, 'driver')
    await $`gcc ${FLAGS} ${sanitizer} ${sources} ${join(import.meta.dir, 'relay-driver.c')} -lmnl -o ${program}`
    console.log(sanitizer)
    await $`${program}`
  }

  // The library is found beside src, so the tests get a checkout of their own.
  for (const part of ['src', 'test', 'package.json', 'tsconfig.json'])
    await cp(join(root, part), join(folder, part), { recursive: true })
  await symlink(join(root, 'node_modules'), join(folder, 'node_modules'))
  await mkdir(join(folder, 'build'))
  await $`gcc ${FLAGS} -fPIC -shared ${MEMORY} ${sources} -lmnl -o ${join(folder, 'build/libsluice.so')}`
  const library = async (name: string) => (await $`gcc -print-file-name=${name}`.text()).trim()
  const preload = `${await library('libasan.so')} ${await library('libubsan.so')}`
  // The runtime ends without giving back what it has, which is no leak of ours.
  await $`${process.execPath} test ./test/native/relay.test.ts ./test/native/accept.test.ts`
    .cwd(folder)
    .env({ ...process.env, LD_PRELOAD: preload, ASAN_OPTIONS: 'detect_leaks=0', UBSAN_OPTIONS: 'halt_on_error=1' })
} finally {
  await rm(folder, { recursive: true })
}
