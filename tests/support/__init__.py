"""What several test files use: objects, stand-ins, tiny models and fixtures. No tests are in here.

Manifests       valid_manifests, invalid_manifests and invalid_values, manifests (how one differs from the short form),
                documents (what the docs say to type), task_pages, alert_cases, exported_series
The operator    operator_objects (small objects, as views and as the API server sends them), stepwise_cluster (decisions
                carried out one step at a time), simulated_api, simulated_cluster and simulated_replica (an API server,
                kubelets, agents and an operator in virtual time), http_server (one answer for every request)
A real cluster  cluster_fixtures (one rig for each session), kube_client (what a user and a kubelet do),
                operator_harness, operator_rbac, operator_scenarios
Training        training (models, corpora and trainers in memory), tiny_model (the same as files), model_families,
                multimodal_models, kernel_doubles and kernel_cases, rank_processes, sharded_saves (ranks as threads),
                planning_models
Data            tokenizers, chat_templates, datasets (tokenised from rows that a test writes)
Stores          faulty_stores (in memory; fails or dies at the k-th change), fake_hub, minio
Whole runs      local_runs (`finetune run` in a folder), train_runs (ranks without an agent), small_report,
                pause_at_step (a run that waits for its test)
pytest          shuffled (the plugin of tools/shake.py), growth (how time grows with the input)
"""
