"""Settings that cannot work, one line each: overrides of the quickstart, and after `=>` the key that must be named.

Without `=>` it is the key of the last override. A line may begin with the name of another config in brackets.
"""

ROLLOUT = """
actor_rollout_ref.rollout=5
actor_rollout_ref.rollout.n=0
actor_rollout_ref.rollout.n=-2
actor_rollout_ref.rollout.n=eight
actor_rollout_ref.rollout.n=2.5
actor_rollout_ref.rollout.n=null
actor_rollout_ref.rollout.n=[8]
actor_rollout_ref.rollout.temperature=-1
actor_rollout_ref.rollout.temperature=hot
actor_rollout_ref.rollout.temperature=0
actor_rollout_ref.rollout.temperature=nan
actor_rollout_ref.rollout.temperature=inf
actor_rollout_ref.rollout.temperature=null
actor_rollout_ref.rollout.log_prob_gap_rows=-1
actor_rollout_ref.rollout.log_prob_gap_warning=-1
actor_rollout_ref.rollout.top_p=0.9
actor_rollout_ref.rollout.top_p=0
actor_rollout_ref.rollout.top_k=50
actor_rollout_ref.rollout.top_k=none
actor_rollout_ref.rollout.val_kwargs.top_p=0.5
actor_rollout_ref.rollout.val_kwargs.top_k=5
actor_rollout_ref.rollout.val_kwargs.temperature=-0.5
actor_rollout_ref.rollout.val_kwargs.n=0
actor_rollout_ref.rollout.val_kwargs=greedy
+actor_rollout_ref.rollout.max_tokens=2
+actor_rollout_ref.rollout.repetition_penalty=1.3
actor_rollout_ref.rollout.do_sample=false
actor_rollout_ref.rollout.ignore_eos=true
actor_rollout_ref.rollout.over_sample_rate=0.5
actor_rollout_ref.rollout.multi_turn.enable=true
actor_rollout_ref.rollout.multi_turn.max_assistant_turns=3
actor_rollout_ref.rollout.multi_turn.tool_config_path=tools.yaml
actor_rollout_ref.rollout.load_format=typo
actor_rollout_ref.rollout.load_format=safetensors
actor_rollout_ref.rollout.mode=sync
actor_rollout_ref.rollout.name=masked_difusion
actor_rollout_ref.rollout.name=null
actor_rollout_ref.rollout.dtype=float31
actor_rollout_ref.rollout.seed=-1
actor_rollout_ref.rollout.seed=abc
actor_rollout_ref.rollout.seed=null
actor_rollout_ref.rollout.seed=99999999999999999999
actor_rollout_ref.rollout.prompt_length=0
actor_rollout_ref.rollout.prompt_length=2 => data.train_files
actor_rollout_ref.rollout.prompt_length=1000
actor_rollout_ref.rollout.response_length=0
actor_rollout_ref.rollout.response_length=1000
actor_rollout_ref.rollout.max_num_seqs=0
actor_rollout_ref.rollout.max_num_seqs=many
actor_rollout_ref.rollout.max_wait_ms=-1
actor_rollout_ref.rollout.max_wait_ms=soon
actor_rollout_ref.rollout.quiet_ms=-5
actor_rollout_ref.rollout.compile=maybe
actor_rollout_ref.rollout.log_prob_gap_rows=-1
actor_rollout_ref.rollout.log_prob_gap_warning=-0.1
actor_rollout_ref.rollout.image.height=-3
actor_rollout_ref.rollout.image.height=32 => actor_rollout_ref.rollout.image.width
actor_rollout_ref.rollout.image.contact_sheet_rows=-1
actor_rollout_ref.rollout.image=none
actor_rollout_ref.rollout.tensor_model_parallel_size=2
actor_rollout_ref.rollout.data_parallel_size=2
actor_rollout_ref.rollout.pipeline_model_parallel_size=2
actor_rollout_ref.rollout.expert_parallel_size=4
actor_rollout_ref.rollout.nnodes=1
actor_rollout_ref.rollout.max_model_len=100
actor_rollout_ref.rollout.quantization=fp8
actor_rollout_ref.rollout.engine_kwargs.vllm={x:1} => actor_rollout_ref.rollout.engine_kwargs
actor_rollout_ref.rollout.prometheus.enable=true
actor_rollout_ref.rollout.calculate_log_probs=true
actor_rollout_ref.rollout.disaggregation.enabled=true
actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=0
actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=-8
actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=null
actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=half
actor_rollout_ref.rollout.log_prob_micro_batch_size=4
actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=true actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=4
actor_rollout_ref.rollout.agent.num_workers=0
actor_rollout_ref.rollout.agent.num_workers=-1
actor_rollout_ref.rollout.agent.num_workers=two
actor_rollout_ref.rollout.agent.default_agent_loop=single_turn_agent
actor_rollout_ref.rollout.agent.default_agent_loop=typo
actor_rollout_ref.rollout.agent.agent_loop_manager_class=nowhere.Manager
actor_rollout_ref.rollout.agent.agent_loop_manager_class=os.path.Manager
actor_rollout_ref.rollout.agent.agent_loop_config_path=/nowhere.yaml
actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes=0
actor_rollout_ref.rollout.checkpoint_engine.backend=nccl
actor_rollout_ref.rollout.trace.backend=typo
+actor_rollout_ref.rollout.nope=1
+actor_rollout_ref.rollout.temprature=0.5
+actor_rollout_ref.rollout.agent.num_worker=3
+actor_rollout_ref.rollout.val_kwargs.temp=1
~actor_rollout_ref.rollout.val_kwargs
~actor_rollout_ref.rollout.agent
actor_rollout_ref.rollout._target_=nowhere.Config
actor_rollout_ref.rollout.temperature=${nowhere}
actor_rollout_ref.rollout.response_length=${data.max_response_lenght}
actor_rollout_ref.rollout.sampler.name=greedy
actor_rollout_ref.rollout.sampler.name=null
actor_rollout_ref.rollout.sampler.name=emerge => actor_rollout_ref.rollout.sampler.options.block_length
actor_rollout_ref.rollout.sampler.options.steps=0
actor_rollout_ref.rollout.sampler.options.steps=-3
actor_rollout_ref.rollout.sampler.options.steps=8.5
actor_rollout_ref.rollout.sampler.options.steps=all
actor_rollout_ref.rollout.sampler.options.steps=1
actor_rollout_ref.rollout.sampler.options.block_length=0
actor_rollout_ref.rollout.sampler.options.block_length=3
actor_rollout_ref.rollout.sampler.options.block_length=100
actor_rollout_ref.rollout.sampler.options.ordering=best
actor_rollout_ref.rollout.sampler.options.cache=yes
actor_rollout_ref.rollout.sampler.options.parallel=more
actor_rollout_ref.rollout.sampler.options.cfg_scale=-1
actor_rollout_ref.rollout.sampler.options.stepz=8
actor_rollout_ref.rollout.sampler.options=fast
actor_rollout_ref.rollout.sampler=maskgit
actor_rollout_ref.rollout.sampler.options.cache=dual actor_rollout_ref.rollout.compile=true
"""

ACTOR = """
actor_rollout_ref=none
actor_rollout_ref.actor=1
actor_rollout_ref.actor.strategy=fsdp
actor_rollout_ref.actor.strategy=ddp
actor_rollout_ref.actor.strategy=megatron
actor_rollout_ref.actor.strategy=null
actor_rollout_ref.actor.ppo_mini_batch_size=0
actor_rollout_ref.actor.ppo_mini_batch_size=-4
actor_rollout_ref.actor.ppo_mini_batch_size=5
actor_rollout_ref.actor.ppo_mini_batch_size=32
actor_rollout_ref.actor.ppo_mini_batch_size=sixteen
actor_rollout_ref.actor.ppo_mini_batch_size=null
actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=0
actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=-1
actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=7
actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=null
actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=all
actor_rollout_ref.actor.ppo_micro_batch_size=8
actor_rollout_ref.actor.use_dynamic_bsz=true actor_rollout_ref.actor.ppo_max_token_len_per_gpu=4
actor_rollout_ref.actor.ppo_max_token_len_per_gpu=-1
actor_rollout_ref.actor.use_dynamic_bsz=often
actor_rollout_ref.actor.ppo_epochs=0
actor_rollout_ref.actor.ppo_epochs=-1
actor_rollout_ref.actor.clip_ratio=-0.2
actor_rollout_ref.actor.clip_ratio_low=0
actor_rollout_ref.actor.clip_ratio_high=-1
actor_rollout_ref.actor.clip_ratio_high=wide
actor_rollout_ref.actor.clip_ratio_c=0.5
actor_rollout_ref.actor.kl_loss_coef=-0.1
actor_rollout_ref.actor.kl_loss_coef=small
actor_rollout_ref.actor.kl_loss_type=k9
actor_rollout_ref.actor.kl_loss_type=null
actor_rollout_ref.actor.use_kl_loss=2
actor_rollout_ref.actor.loss_agg_mode=mean
actor_rollout_ref.actor.loss_agg_mode=null
actor_rollout_ref.actor.policy_loss.loss_mode=maskgpro
actor_rollout_ref.actor.policy_loss.loss_mode=bypass_mode
actor_rollout_ref.actor.policy_loss.loss_mode=dppo_kl
actor_rollout_ref.actor.policy_loss.loss_mode=dro => actor_rollout_ref.actor.policy_loss.dro_beta
actor_rollout_ref.actor.policy_loss=maskgrpo
actor_rollout_ref.actor.policy_loss.options.divisor=none
actor_rollout_ref.actor.policy_loss.options=none
method=espo actor_rollout_ref.actor.policy_loss.options.nope=1
method=espo actor_rollout_ref.actor.policy_loss.options.divisor=tokens
method=espo actor_rollout_ref.actor.policy_loss.loss_mode=bgpo => actor_rollout_ref.actor.use_kl_loss
method=espo actor_rollout_ref.actor.kl_loss_type=low_var_kl
method=bgpo actor_rollout_ref.actor.policy_loss.options.length=null
method=gdsd actor_rollout_ref.actor.policy_loss.options.psi=0
method=spg actor_rollout_ref.actor.use_kl_loss=true
method=spg actor_rollout_ref.actor.policy_loss.options.bound=eubo
actor_rollout_ref.actor.ulysses_sequence_parallel_size=2
actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=2
actor_rollout_ref.ref.ulysses_sequence_parallel_size=2
actor_rollout_ref.actor.use_prefix_grouper=true
actor_rollout_ref.actor.qat.enable=true
actor_rollout_ref.actor.grad_clip=0.2
actor_rollout_ref.actor.entropy_coeff=none
actor_rollout_ref.actor.optim.lr=0
actor_rollout_ref.actor.optim.lr=-1
actor_rollout_ref.actor.optim.lr=fast
actor_rollout_ref.actor.optim.lr=null
actor_rollout_ref.actor.optim.lr=nan
actor_rollout_ref.actor.optim.weight_decay=-0.1
actor_rollout_ref.actor.optim.betas=[0.9]
actor_rollout_ref.actor.optim.betas=[0.9,1.5]
actor_rollout_ref.actor.optim.betas=0.9
actor_rollout_ref.actor.optim.clip_grad=0
actor_rollout_ref.actor.optim.clip_grad=-1
actor_rollout_ref.actor.optim.lr_warmup_steps_ratio=2
actor_rollout_ref.actor.optim.lr_warmup_steps=-7
actor_rollout_ref.actor.optim.lr_scheduler_type=linear
actor_rollout_ref.actor.optim.min_lr_ratio=3
actor_rollout_ref.actor.optim.optimizer=AdamWW
actor_rollout_ref.actor.optim.optimizer_impl=torch.optimm
actor_rollout_ref.actor.optim.optimizer_impl=bitsandbytes.optim
actor_rollout_ref.actor.optim=adam
+actor_rollout_ref.actor.optim.learning_rate=1e-4
+actor_rollout_ref.actor.nope=1
+actor_rollout_ref.actor.ppo_minibatch_size=8
+actor_rollout_ref.actor.fsdp_config.model_dtyp=bf16
+actor_rollout_ref.nope={a:1}
actor_rollout_ref.actor.fsdp_config.model_dtype=float31
actor_rollout_ref.actor.fsdp_config.fsdp_size=3
actor_rollout_ref.actor.fsdp_config.fsdp_size=0
actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp8
actor_rollout_ref.actor.fsdp_config.param_offload=sometimes
actor_rollout_ref.actor.checkpoint.save_contents=[weights]
actor_rollout_ref.actor.checkpoint.save_contents=[optimizer]
actor_rollout_ref.actor.checkpoint.async_save=true
actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=0
actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=-2
actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=null
actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=some
actor_rollout_ref.ref.log_prob_micro_batch_size=4
actor_rollout_ref.ref.fsdp_config.model_dtype=double
+actor_rollout_ref.ref.nope=1
actor_rollout_ref.hybrid_engine=false
actor_rollout_ref.actor.fsdp_config.dtype=float31
actor_rollout_ref.ref.fsdp_config.dtype=float31
actor_rollout_ref.ref.fsdp_config.fsdp_size=0
actor_rollout_ref.ref.strategy=ddp
actor_rollout_ref.ref.fsdp_config.strategy=ddp
actor_rollout_ref.ref.log_prob_use_dynamic_bsz=often
actor_rollout_ref.actor.rollout_n=3
actor_rollout_ref.nccl_timeout=0
[quickstart_ar] actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=100
[quickstart_ar] actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=48
[quickstart_ar] actor_rollout_ref.rollout.top_p=0.9
[quickstart_ar] actor_rollout_ref.rollout.n=0
"""

MODEL = """
actor_rollout_ref.model=llada
actor_rollout_ref.model.path=null
actor_rollout_ref.model.path=/nowhere/model
actor_rollout_ref.model.path=.
actor_rollout_ref.model.path=[a,b]
actor_rollout_ref.model.tokenizer_path=/nowhere/tokenizer
actor_rollout_ref.model.hf_config_path=/nowhere/config
actor_rollout_ref.model.model_type=diffusion
actor_rollout_ref.model.model_type=language_model => actor_rollout_ref.rollout.name
actor_rollout_ref.model.external_lib=no_such_library
actor_rollout_ref.model.lora_rank=-4
actor_rollout_ref.model.lora_rank=four
actor_rollout_ref.model.lora_rank=2.5
actor_rollout_ref.model.lora_rank=4 actor_rollout_ref.model.lora_alpha=0
actor_rollout_ref.model.lora_rank=4 actor_rollout_ref.model.lora_alpha=-16
actor_rollout_ref.model.lora_rank=4 actor_rollout_ref.model.target_modules=nope
actor_rollout_ref.model.lora_rank=4 actor_rollout_ref.model.target_modules=q_proj
actor_rollout_ref.model.lora_rank=4 actor_rollout_ref.model.target_modules=[]
actor_rollout_ref.model.lora_rank=4 actor_rollout_ref.model.target_modules=null
actor_rollout_ref.model.lora_rank=4 actor_rollout_ref.model.target_modules=[q_proj,o_proj]
actor_rollout_ref.model.lora_rank=4 actor_rollout_ref.model.target_modules='*.q_proj'
actor_rollout_ref.model.lora_rank=4 actor_rollout_ref.model.exclude_modules='.*'
actor_rollout_ref.model.lora_rank=4 actor_rollout_ref.rollout.layered_summon=true
actor_rollout_ref.model.lora_rank=4 algorithm.estimation.reference_sync_steps=2
actor_rollout_ref.model.lora_rank=4 actor_rollout_ref.model.lora_adapter_path=/nowhere/adapter
actor_rollout_ref.model.lora_adapter_path=/nowhere/adapter => actor_rollout_ref.model.lora_rank
actor_rollout_ref.model.lora_rank=4 actor_rollout_ref.rollout.dtype=bfloat16 actor_rollout_ref.model.lora.merge=true
actor_rollout_ref.model.lora.rank=8
actor_rollout_ref.model.target_modules=5
actor_rollout_ref.model.lora.dropout=0.05
actor_rollout_ref.model.use_liger=true
actor_rollout_ref.model.use_fused_kernels=true
actor_rollout_ref.model.tiled_mlp.enabled=true
actor_rollout_ref.model.mtp.enable=true
actor_rollout_ref.model.enable_gradient_checkpointing=yes please
actor_rollout_ref.model.override_config.attn_implementation=fast
actor_rollout_ref.model.override_config.attn_implementation=flex_attention
+actor_rollout_ref.model.override_config.n_layers=99 => actor_rollout_ref.model.override_config
+actor_rollout_ref.model.override_config.n_layers=1 => actor_rollout_ref.model.override_config
+actor_rollout_ref.model.override_config.n_layers=two
+actor_rollout_ref.model.override_config.num_hidden_layers=5 => actor_rollout_ref.model.override_config
+actor_rollout_ref.model.override_config.d_model=64 => actor_rollout_ref.model.override_config
+actor_rollout_ref.model.override_config.mlp_hidden_size=32 => actor_rollout_ref.model.override_config
+actor_rollout_ref.model.override_config.embedding_size=5000 => actor_rollout_ref.model.override_config
+actor_rollout_ref.model.override_config.embedding_size=10 => actor_rollout_ref.model
+actor_rollout_ref.model.override_config.weight_tying=nope
+actor_rollout_ref.model.override_config.n_layer=4
+actor_rollout_ref.model.override_config.mask_token_id=5
+actor_rollout_ref.model.override_config.mask_token_id=5000
+actor_rollout_ref.model.override_config.mask_token_id=-1
+actor_rollout_ref.model.override_config.mask_token_id=mask
+actor_rollout_ref.model.override_config.family=unknown => actor_rollout_ref.model.path
actor_rollout_ref.model.override_config=none
actor_rollout_ref.model.custom_chat_template='{{ nope' => data.train_files
+actor_rollout_ref.model.nope=1
+actor_rollout_ref.model.lora_rnk=8
~actor_rollout_ref.model.lora_rank
"""

ESTIMATION = """
algorithm=maskgrpo
algorithm.max_lost_share=1.5
algorithm.max_lost_share=none
algorithm.estimation=null
algorithm.estimation=fast
algorithm.estimation.estimator=elbow
algorithm.estimation.estimator=null
algorithm.estimation.mu=0
algorithm.estimation.mu=-1
algorithm.estimation.mu=1.5
algorithm.estimation.mu=two
algorithm.estimation.canvas=hidden
algorithm.estimation.mask_sharing=all
algorithm.estimation.mask_sharing=null
algorithm.estimation.seed=-1
algorithm.estimation.seed=abc
algorithm.estimation.reference_sync_steps=-1
algorithm.estimation.reference_sync_steps=1.5
actor_rollout_ref.actor.use_kl_loss=false algorithm.estimation.reference_sync_steps=4
algorithm.estimation.cfg_scale=-1
algorithm.estimation.cfg_scale=high
algorithm.estimation.gamma=1.0
algorithm.estimation.gamma=0
algorithm.estimation.options.gamma=2
algorithm.estimation.options.gamma=big
algorithm.estimation.options.remasking=none
algorithm.estimation.options.level_cap=0
algorithm.estimation.options.nope=1
algorithm.estimation.options=none
algorithm.estimation.estimator=diffu_grpo algorithm.estimation.options.gamma=0.7
algorithm.estimation.estimator=elbo => actor_rollout_ref.actor.policy_loss.loss_mode
method=gdpo algorithm.estimation.options.nodes=gauss-9
method=gdpo algorithm.estimation.options.complement=true
method=justgrpo algorithm.estimation.options.sampled=0
method=agrpo algorithm.estimation.options.draws=0
method=agrpo algorithm.estimation.options.weighting=loss
method=agrpo algorithm.estimation.options.stratified=maybe
method=agrpo algorithm.estimation.canvas=masked
method=agrpo algorithm.estimation.cfg_scale=0.5
method=agrpo actor_rollout_ref.rollout.calculate_log_probs=false
method=agrpo actor_rollout_ref.rollout.sampler.options.top_k=0
method=agrpo +actor_rollout_ref.rollout.sampler.options.cache=dual
method=agrpo +actor_rollout_ref.rollout.sampler.options.record=true => actor_rollout_ref.rollout.sampler.options.record
method=agrpo actor_rollout_ref.actor.use_kl_loss=true actor_rollout_ref.actor.kl_loss_type=k2
algorithm.estimation.estimator=coupled actor_rollout_ref.actor.use_kl_loss=true algorithm.estimation.options.nope=1
+algorithm.estimation.nu=3
algorithm.adv_estimator=unknown
algorithm.adv_estimator=gae
algorithm.adv_estimator=remax
algorithm.adv_estimator=optimal_token_baseline
algorithm.adv_estimator=gdpo => algorithm.gdpo_reward_keys
algorithm.adv_estimator=null
algorithm.norm_adv_by_std_in_grpo=sometimes
algorithm.reward_transform=square
algorithm.on_reward_failure=ignore
algorithm.max_lost_share=2
algorithm.max_lost_share=few
algorithm.use_kl_in_reward=true
algorithm.gamma=0.6
algorithm.lam=0.9
algorithm.use_pf_ppo=true
algorithm.rollout_correction.rollout_is=token
algorithm.rollout_correction.rollout_rs=sequence
algorithm.rollout_correction.bypass_mode=true
algorithm.rollout_correction.rollout_is_threshold=5.0
algorithm.filter_groups.enable=true algorithm.filter_groups.max_inflight_gen_batches=0
+algorithm.nope=1
+algorithm.adv_estimater=grpo
critic.enable=true
"""

TRAINER = """
trainer=fast
trainer.device=npu
trainer.total_epochs=0
trainer.total_epochs=-1
trainer.total_epochs=ten
trainer.total_epochs=null
trainer.total_training_steps=-1
trainer.total_training_steps=0
trainer.total_training_steps=1.5
trainer.save_freq=-2
trainer.save_freq=always
trainer.save_freq=null
trainer.test_freq=-5
trainer.test_freq=null
trainer.nnodes=0
trainer.nnodes=-1
trainer.nnodes=one
trainer.n_gpus_per_node=0
trainer.n_gpus_per_node=-1
trainer.n_gpus_per_node=3 => actor_rollout_ref.actor.ppo_mini_batch_size
trainer.n_gpus_per_node=2 => actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu
trainer.logger=[wandbb]
trainer.logger=tensorbord
trainer.logger=5
trainer.device=tpu
trainer.device=cuda
trainer.resume_mode=always
trainer.resume_mode=resume_path => trainer.resume_from_path
trainer.resume_mode=resume_path trainer.resume_from_path=/nowhere/global_step_3
trainer.resume_mode=resume_path trainer.resume_from_path=/nowhere
trainer.critic_warmup=10
trainer.val_only=true trainer.val_before_train=false
trainer.val_before_train=perhaps
trainer.max_actor_ckpt_to_keep=0
trainer.max_actor_ckpt_to_keep=-1
trainer.default_local_dir=null
trainer.default_local_dir=/dev/null/checkpoints
trainer.default_local_dir=/proc/checkpoints
trainer.rollout_data_dir=/dev/null/rollouts
trainer.validation_data_dir=/proc/1/validation
trainer.rollout_data_dir=5
trainer.log_val_generations=-1
trainer.use_v1=false
trainer.ray_wait_register_center_timeout=0
trainer.v1.trainer_mode=sync
trainer.v1.trainer_mode=maskgrpo_async
trainer.v1.trainer_mode=separate_async
trainer.v1.maskgrpo_sync.poll_interval_s=0
trainer.v1.maskgrpo_sync.poll_interval_s=-1
trainer.v1.sampler.max_off_policy_strategy=stop
trainer.v1.sampler.custom_sampler.path=sampler.py => trainer.v1.sampler.custom_sampler.name
trainer.v1.sampler.custom_sampler.name=X trainer.v1.sampler.custom_sampler.path=/nowhere/sampler.py
trainer.checkpoint_callback_class=nowhere.Callback
trainer.v1=sync
+trainer.nope=1
+trainer.total_epoch=3
~trainer.save_freq
+trainr.total_epochs=3 => trainr
"""

REWARD = """
reward=gsm8k
reward.num_workers=0
reward.num_workers=-1
reward.num_workers=two
reward.num_workers=null
reward.timeout_s=0
reward.timeout_s=-1
reward.timeout_s=long
reward.reward_manager.name=maskgrpo_txt
reward.reward_manager.name=null
reward.reward_manager.source=github
reward.reward_manager.name=maskgrpo_image => reward.image
reward.reward_manager=naive
reward.custom_reward_function.path=/nowhere/reward.py
reward.custom_reward_function.path=README.md
reward.custom_reward_function.path=setup.py => reward.custom_reward_function.name
reward.custom_reward_function.path=tests/e2e/varied_reward.py reward.custom_reward_function.name=compute_scores
reward.custom_reward_function.path=tests/e2e/varied_reward.py reward.custom_reward_function.name=null
+reward.weights.gsm8k.style=1.0
+reward.weights.gsm9k.format=1.0
+reward.weights.gsm8k.format=heavy
+reward.weights.gsm8k=2 => reward.weights.gsm8k
reward.weights=none
+reward.sandbox.isolate=true
+reward.sandbox.timeout_s=0
+reward.sandbox.provider=docker
+reward.sandbox.memory_mb=lots
+reward.nope=1
+reward.time_out_s=20
reward.reward_manager.name=maskgrpo_image +reward.image.scorers.x.kind=sharpness
reward.reward_manager.name=maskgrpo_image +reward.image.scorers.x.weight=big
reward.reward_manager.name=maskgrpo_image +reward.image.scorers.clip_folder.replicas=0
reward.reward_manager.name=maskgrpo_image +reward.image.on_failure=ignore +reward.image.scorers.x.kind=y => reward.image
"""

OTHERS = """
model_engine=megatron
extensions=my_module
extensions=[no_such_module]
extensions=[/nowhere/file.py]
method=nope
transfer_queue.backend.SimpleStorage.num_data_storage_units=0
transfer_queue.backend.SimpleStorage.num_data_storage_units=-1
transfer_queue.backend.SimpleStorage.total_storage_size=10
transfer_queue.backend.storage_backend=Redis
transfer_queue=none
+transfer_queue.nope=1
ray_kwargs.ray_init.num_cpus=2
ray_kwargs.ray_init.num_cpus=0
ray_kwargs.ray_init.num_cpus=-1
ray_kwargs.ray_init.num_cpus=all
ray_kwargs.ray_init.num_gpus=0
ray_kwargs.ray_init.num_gpus=none
+ray_kwargs.ray_init.num_cpu=20
+ray_kwargs.ray_int.num_cpus=20 => ray_kwargs.ray_int
ray_kwargs=none
distillation.enabled=true
custom_reward_function.path=tests/e2e/varied_reward.py
reward_model.reward_manager=naive
reward_model.num_workers=2
sandbox_fusion.url=http://localhost:1
quickstart_dir=/nowhere => data.train_files
quickstart_seed=-1 => data.seed
+algoritm.gamma=1 => algoritm
"""

DATA = """
data=none
data.train_files=null
data.train_files=[]
data.train_files=5
data.train_files=/nowhere/train.parquet
data.train_files=/proc/version
data.train_files=README.md
data.train_files=setup.py
data.val_files=/nowhere/validation.parquet
data.val_files=[/nowhere/validation.parquet]
data.train_batch_size=0
data.train_batch_size=-16
data.train_batch_size=sixteen
data.train_batch_size=null
data.train_batch_size=3 actor_rollout_ref.actor.ppo_mini_batch_size=2
data.train_batch_size=128 actor_rollout_ref.actor.ppo_mini_batch_size=128 => data.train_batch_size
data.gen_batch_size=0
data.gen_batch_size=5
data.val_batch_size=-1
data.val_batch_size=all
data.max_prompt_length=0
data.max_prompt_length=-5
data.max_prompt_length=4 => data.train_files
data.max_prompt_length=4000 => data.max_response_length
data.max_prompt_length=long
data.max_prompt_length=null
data.max_response_length=0
data.max_response_length=10 => actor_rollout_ref.rollout.sampler.options.block_length
data.max_response_length=100000
data.max_response_length=none
data.max_prompt_length=4 data.filter_overlong_prompts=true => data.train_batch_size
data.filter_overlong_prompts=maybe
data.train_max_samples=0
data.train_max_samples=4 => data.train_batch_size
data.train_max_samples=few
data.prompt_key=question
data.prompt_key=null
data.shuffle=random
data.seed=-1
data.seed=abc
data.dataloader_num_workers=-1
data.truncation=cut
data.custom_cls.path=/nowhere/dataset.py
data.tool_config_path=tools.yaml
data.apply_chat_template_kwargs=none
+data.nope=1
+data.max_promt_length=3
~data.train_files
~data.max_prompt_length
"""

SECTIONS = {
    "rollout": ROLLOUT,
    "actor": ACTOR,
    "model": MODEL,
    "estimation": ESTIMATION,
    "trainer": TRAINER,
    "reward": REWARD,
    "others": OTHERS,
    "data": DATA,
}
