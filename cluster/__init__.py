"""How work reaches machines: calls of long-lived workers, in this process or on a Ray cluster.

    pool         the contract: Call, Returned | Raised | TimedOut | Lost, Pool
    in_process   InProcessPool: threads of this process, no Ray
    ray_pool     RayPool: processes on this machine or on a cluster
    fair_shares  how pools share one cluster
    ray_session  RaySession: the connection to Ray, to share among pools
    ray_metrics  Meters: numbers for Prometheus, through Ray's exporter
    testing      PoolContract: the test suite that every pool passes

Importing this package loads neither Ray nor torch; Ray is loaded when a session is opened. It knows neither recipes
nor evaluations.
"""
