// HubSpot's own Node client, pointed at the gateway: contact CRUD, search, batch and paging, until enough tokens have expired.
//
// In: GATEWAY (…/gateway/<connection>), API_KEY, LEDGER (the simulator's), EXPIRIES. Out: one line of JSON.
import { Client } from '@hubspot/api-client'

const { GATEWAY, API_KEY, LEDGER, EXPIRIES } = process.env
const hubspot = new Client({ accessToken: API_KEY, basePath: GATEWAY })
const { basicApi, searchApi, batchApi } = hubspot.crm.contacts
const failures = []
let calls = 0

async function call(what, promise, expected = () => true) {
  calls += 1
  try {
    const answer = await promise
    if (!expected(answer)) failures.push(`${what}: unexpected answer`)
    return answer
  } catch (error) {
    failures.push(`${what}: ${error.code ?? ''} ${error.message}`)
    return undefined
  }
}

async function round(n) {
  const email = (i) => `node-${n}-${i}@example.com`
  const properties = (i) => ({ email: email(i), firstname: `Node ${n}`, lastname: `${i}` })
  const one = await call('create', basicApi.create({ properties: properties(0) }), (a) => Boolean(a.id))
  if (!one) return
  await call('read', basicApi.getById(one.id, ['email', 'firstname']), (a) => a.properties.email === email(0))
  await call('update', basicApi.update(one.id, { properties: { firstname: 'Changed' } }), (a) => a.properties.firstname === 'Changed')
  const many = await call('batch create', batchApi.create({ inputs: [1, 2].map((i) => ({ properties: properties(i), associations: [] })) }), (a) => a.results.length === 2)
  if (!many) return
  const inputs = many.results.map(({ id }) => ({ id }))
  await call('batch read', batchApi.read({ inputs, properties: ['email'], propertiesWithHistory: [] }), (a) => a.results.length === 2)
  await call('batch update', batchApi.update({ inputs: inputs.map(({ id }) => ({ id, properties: { lastname: 'Batch' } })) }), (a) => a.results.length === 2)
  await call('search', searchApi.doSearch({
    filterGroups: [{ filters: [{ propertyName: 'email', operator: 'EQ', value: email(0) }] }],
    properties: ['email'], limit: 10, sorts: [], after: '0',
  }), (a) => a.total === 1)
  const first = await call('page', basicApi.getPage(2), (a) => a.results.length === 2)
  if (first?.paging?.next) await call('next page', basicApi.getPage(2, first.paging.next.after), (a) => a.results.length >= 1)
  await call('batch archive', batchApi.archive({ inputs }))
  await call('archive', basicApi.archive(one.id))
}

const expiries = async () => (await (await fetch(LEDGER)).json()).refreshes_accepted
const before = await expiries()
for (let n = 0; failures.length === 0 && (await expiries()) - before < Number(EXPIRIES); n += 1) await round(n)
console.log(JSON.stringify({ calls, failures, expiries: (await expiries()) - before }))
