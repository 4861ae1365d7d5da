// What HubSpot's own Node client throws, in every way that people see it: whatever is armed at the simulator meets one call each.
//
// In: BASE (the simulator), TOKEN (one that is good), CALLS (how many). Out: one line of JSON, texts by what was called.
import { Client } from '@hubspot/api-client'
import { inspect } from 'node:util'

const { BASE, TOKEN, CALLS } = process.env
const client = (accessToken) => new Client({ accessToken, basePath: BASE, numberOfApiCallRetries: 0 })
const { basicApi } = client(TOKEN).crm.contacts
const { tokensApi } = client().oauth
const contact = { properties: { email: 'twice@example.com' }, associations: [] }
const thrown = []

async function call(promise) {
  try {
    await promise
    thrown.push([])
  } catch (error) {
    thrown.push([String(error), error.stack, inspect(error), JSON.stringify(error), JSON.stringify({ level: 50, err: { type: error.name, message: error.message, code: error.code } })])
  }
}

for (let n = 0; n < Number(CALLS); n += 1) await call(basicApi.getPage(1))
await basicApi.create(contact)
await call(basicApi.create(contact))
await call(client('garbage').crm.contacts.basicApi.getPage(1))
await call(tokensApi.create('refresh_token', undefined, undefined, 'sim-client', 'sim-secret', 'gone'))
await call(tokensApi.create('refresh_token', undefined, undefined, 'sim-client', 'wrong', 'gone'))
console.log(JSON.stringify(thrown))
