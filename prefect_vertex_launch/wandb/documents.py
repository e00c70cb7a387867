"""The GraphQL operations of the queue protocol, with the names and fields of the wandb client's own."""

from __future__ import annotations

from prefect_vertex_launch.wandb.graphql import Operation

GET_RUN_QUEUE = Operation(
    "GetRunQueueMetadata",
    """
query GetRunQueueMetadata($projectName: String!, $entityName: String!, $runQueue: String!) {
  project(name: $projectName, entityName: $entityName) {
    runQueue(name: $runQueue) { id access defaultResourceConfigID prioritizationMode externalLinks }
  }
}""",
)

GET_RESOURCE_CONFIG = Operation(
    "GetDefaultResourceConfig",
    """
query GetDefaultResourceConfig($entityName: String!, $id: ID!) {
  entity(name: $entityName) {
    defaultResourceConfig(id: $id) { config resource templateVariables { name schema } }
  }
}""",
)

LIST_RUN_QUEUES = Operation(
    "ProjectRunQueues",
    """
query ProjectRunQueues($entity: String!, $projectName: String!) {
  project(entityName: $entity, name: $projectName) { runQueues { id name createdBy access } }
}""",
)

# Sent again after a failure all the same: a second registration leaves an idle row, nothing more.
CREATE_AGENT = Operation(
    "createLaunchAgent",
    """
mutation createLaunchAgent($entity: String!, $project: String!, $queues: [ID!]!, $hostname: String!,
                           $agentConfig: JSONString, $version: String) {
  createLaunchAgent(input: {entityName: $entity, projectName: $project, runQueues: $queues,
                            hostname: $hostname, agentConfig: $agentConfig, version: $version}) {
    launchAgentId
  }
}""",
)

GET_AGENT = Operation(
    "LaunchAgent",
    """
query LaunchAgent($agentId: ID!) {
  launchAgent(id: $agentId) { id name runQueues hostname agentStatus stopPolling heartbeatAt }
}""",
)

UPDATE_AGENT = Operation(
    "updateLaunchAgent",
    """
mutation updateLaunchAgent($agentId: ID!, $agentStatus: String) {
  updateLaunchAgent(input: {launchAgentId: $agentId, agentStatus: $agentStatus}) { success }
}""",
)

# The item's id is asked for before its spec, so that it is found even where the spec cannot be read.
POP = Operation(
    "popFromRunQueue",
    """
mutation popFromRunQueue($entity: String!, $project: String!, $queueName: String!, $launchAgentId: ID) {
  popFromRunQueue(input: {entityName: $entity, projectName: $project, queueName: $queueName,
                          launchAgentId: $launchAgentId}) {
    runQueueItemId
    runSpec
  }
}""",
    is_idempotent=False,
)

ACKNOWLEDGE = Operation(
    "ackRunQueueItem",
    """
mutation ackRunQueueItem($itemId: ID!, $runId: String!) {
  ackRunQueueItem(input: {runQueueItemId: $itemId, runName: $runId}) { success }
}""",
)


def _notice(name: str) -> Operation:
    return Operation(
        name,
        f"""
mutation {name}($runQueueItemId: ID!, $message: String!, $stage: String!, $filePaths: [String!]) {{
  {name}(input: {{runQueueItemId: $runQueueItemId, message: $message, stage: $stage,
                  filePaths: $filePaths}}) {{
    success
  }}
}}""",
    )


FAIL = _notice("failRunQueueItem")
WARN = _notice("updateRunQueueItemWarning")

GET_ITEM = Operation(
    "GetRunQueueItem",
    """
query GetRunQueueItem($projectName: String!, $entityName: String!, $runQueue: String!, $itemId: ID!) {
  project(name: $projectName, entityName: $entityName) {
    runQueue(name: $runQueue) { runQueueItem(id: $itemId) { id state associatedRunId } }
  }
}""",
)

# No client of W&B's reads it; the agent's page at W&B shows an item's configuration.
GET_RUN_SPEC = Operation(
    "GetRunQueueItemSpec",
    """
query GetRunQueueItemSpec($projectName: String!, $entityName: String!, $runQueue: String!, $itemId: ID!) {
  project(name: $projectName, entityName: $entityName) {
    runQueue(name: $runQueue) { runQueueItem(id: $itemId) { id runSpec } }
  }
}""",
)

GET_RUN_STATE = Operation(
    "RunState",
    """
query RunState($project: String!, $entity: String!, $name: String!) {
  project(name: $project, entityName: $entity) { run(name: $name) { state } }
}""",
)

GET_ARTIFACT_FILES = Operation(
    "GetArtifactMembershipFileUrls",
    """
query GetArtifactMembershipFileUrls($entity: String!, $project: String!, $collection: String!,
                                    $alias: String!, $cursor: String, $perPage: Int) {
  project(name: $project, entityName: $entity) {
    artifactCollection(name: $collection) {
      __typename
      artifactMembership(aliasName: $alias) {
        artifact { id }
        files(after: $cursor, first: $perPage) {
          pageInfo { __typename endCursor hasNextPage }
          edges { node { __typename name directUrl } }
        }
      }
    }
  }
}""",
)


UPSERT_RUN = Operation(
    "UpsertBucket",
    """
mutation UpsertBucket($name: String, $project: String, $entity: String, $host: String, $jobType: String) {
  upsertBucket(input: {name: $name, modelName: $project, entityName: $entity, host: $host,
                       jobType: $jobType}) {
    bucket { id name }
  }
}""",
)

CREATE_RUN_FILES = Operation(
    "CreateRunFiles",
    """
mutation CreateRunFiles($entity: String!, $project: String!, $run: String!, $files: [String!]!) {
  createRunFiles(input: {entityName: $entity, projectName: $project, runName: $run, files: $files}) {
    runID
    uploadHeaders
    files { name uploadUrl }
  }
}""",
)

GET_SWEEP_STATE = Operation(
    "GetSweepState",
    """
query GetSweepState($entity: String, $project: String, $sweep: String!) {
  project(name: $project, entityName: $entity) { sweep(sweepName: $sweep) { state } }
}""",
)

# W&B's client asks for the sweep's runs and their histories as well, and then for no more than this.
GET_SWEEP = Operation(
    "SweepWithRuns",
    """
query SweepWithRuns($entity: String, $project: String, $sweep: String!) {
  project(name: $project, entityName: $entity) { sweep(sweepName: $sweep) { id name state scheduler } }
}""",
)

SET_SWEEP_STATE = Operation(
    "UpsertSweep",
    """
mutation UpsertSweep($id: ID, $state: String, $entityName: String, $projectName: String) {
  upsertSweep(input: {id: $id, state: $state, entityName: $entityName, projectName: $projectName}) {
    sweep { name }
  }
}""",
)


def run_statuses(count: int) -> Operation:
    """Return the query for `count` runs at once: variables e0 p0 r0, e1 …, aliases run0, …."""
    numbers = range(count)
    variables = ", ".join(f"$e{n}: String, $p{n}: String, $r{n}: String!" for n in numbers)
    fields = "\n".join(
        f"  run{n}: project(name: $p{n}, entityName: $e{n}) {{ run(name: $r{n}) {{ state stopped }} }}"
        for n in numbers
    )
    return Operation("RunStatuses", f"query RunStatuses({variables}) {{\n{fields}\n}}")
