# MAE's fine-tuning on ImageNet (FINETUNE.md of its published code, ViT-B): AdamW, 5e-4 for 256 images at batch 1024,
# layer-wise decay, 5 epochs of warm-up, cosine.
_base_ = '../optimizers/mae-adamw.py'

epochs = 100
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=5)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    _base_.mae_adamw, optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        by_epoch=True,
        begin=5,
        end=epochs,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=1024)
