"""One process of a worker fleet: takes jobs from a queue and does them with HubSpot's own Python client, through the gateway.

A job carries the id of its connection, never a token. 429 goes back to the queue for as long as `Retry-After` says, 424 is parked.

In: QUEUE (host:port), GATEWAY, API_KEY, THREADS. The queue speaks JSON, a line each way: what became of the last job, the next job.
"""

import json
import os
import socket
import threading
import time

from hubspot import HubSpot
from hubspot.crm.companies import (
    ApiException,
    PublicObjectSearchRequest,
    SimplePublicObjectInput,
    SimplePublicObjectInputForCreate,
)

GATEWAY, API_KEY = os.environ["GATEWAY"], os.environ["API_KEY"]
# Longer than the gateway lets a call wait.
TIMEOUT = 90


def work(companies, job):
    headers = {
        "Evergrant-Enqueued-At": job["enqueued_at"],
        "Evergrant-Lane": "backfill",
        "Evergrant-Max-Wait": "60",
        "X-Req-Id": f"job-{job['job']}",
    }
    options = {"_headers": headers, "_request_timeout": TIMEOUT}
    name = f"job-{job['job']}"
    match job["work"]:
        case "list":
            companies.basic_api.get_page(limit=1, **options)
        case "search":
            search = PublicObjectSearchRequest(
                filter_groups=[{"filters": [{"propertyName": "name", "operator": "EQ", "value": name}]}],
                properties=["name"],
                limit=1,
                sorts=[],
                after="0",
            )
            companies.search_api.do_search(search, **options)
        case "update":
            change = SimplePublicObjectInput(properties={"city": name})
            companies.basic_api.update(job["company"], change, **options)
        case "create":
            headers["Idempotency-Key"] = name
            company = SimplePublicObjectInputForCreate(properties={"name": name}, associations=[])
            companies.basic_api.create(company, **options)


def outcome(companies, job):
    try:
        work(companies, job)
    except ApiException as error:
        told = {"status": error.status, "error": error.headers.get("Evergrant-Error")}
        retry_after = error.headers.get("Retry-After")
        match error.status:
            case 429 | 503:
                return {"again_in": float(retry_after or 1), **told}
            case 424 if told["error"] != "outcome_unknown":
                return {"parked": True, **told}
            case _:
                return {"failed": True, **told}
    except Exception as error:  # every failure is the test's to judge
        return {"failed": True, "status": 0, "error": f"{type(error).__name__}: {error}"}
    return {"done": True}


def run(host, port):
    clients = {}
    with socket.create_connection((host, port)) as connection, connection.makefile("rw") as lines:
        said = {"ready": True}
        while True:
            lines.write(json.dumps(said) + "\n")
            lines.flush()
            job = json.loads(lines.readline() or "{}")
            if "wait" in job:
                time.sleep(job["wait"])
                said = {"ready": True}
                continue
            if "job" not in job:
                return
            connection_id = job["connection"]
            if connection_id not in clients:
                # Without retries of its own: it would sleep through a 429, and this thread with it.
                hubspot = HubSpot(access_token=API_KEY, host=f"{GATEWAY}/gateway/{connection_id}", retry=False)
                clients[connection_id] = hubspot.crm.companies
            began = time.monotonic()
            said = {"job": job["job"], **outcome(clients[connection_id], job)}
            said["ms"] = round((time.monotonic() - began) * 1000)


host, port = os.environ["QUEUE"].split(":")
threads = [threading.Thread(target=run, args=(host, int(port))) for _ in range(int(os.environ["THREADS"]))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
