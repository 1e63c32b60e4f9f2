// For a compiler: code that imports 'cloudflare:sockets' gets 'sluice/sockets'. Named in the "types" of a tsconfig.json, or by
// `/// <reference types="sluice/cloudflare" />`.
declare module 'cloudflare:sockets' {
  export * from 'sluice/sockets'
}
