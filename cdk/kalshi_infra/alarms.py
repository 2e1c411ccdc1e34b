"""Alarms (option alarms): one topic, and what calls somebody.

Invariants:
- Missing values of our own metrics are bad: a host that is gone must not look quiet.
- Every alarm says in its description what it means, not only which number moved.
"""

from __future__ import annotations

from collections.abc import Mapping

from aws_cdk import CfnOutput, Stack
from aws_cdk import aws_budgets as budgets
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_sns as sns
from constructs import Construct

from kalshi_infra.names import pascal
from kalshi_infra.site import Site
from kalshi_infra.topology import Metric, Topology

RDS_FREE_SHARE = 0.10
RDS_CPU_PERCENT = 80
GIB = 1024**3
MINUTE_S = 60
BUDGET_FORECAST_PERCENT = 100
BUDGET_ACTUAL_PERCENT = 80


class AlarmsStack(Stack):
    """Topic, subscription, alarms and the monthly budget.

    `instances` is instance id by host name.
    """

    def __init__(
        self,
        scope: Construct,
        name: str,
        topology: Topology,
        site: Site,
        instances: Mapping[str, str],
        **kwargs: object,
    ) -> None:
        super().__init__(scope, name, **kwargs)  # type: ignore[arg-type]
        self._topic = sns.CfnTopic(
            self, "Topic", topic_name="kalshi-alarms", display_name="Kalshi Tape"
        )
        sns.CfnSubscription(
            self, "Mail", topic_arn=self._topic.ref, protocol="email", endpoint=site.alarm_email
        )
        self._metrics(topology)
        self._instances(instances)
        if site.options.production == "rds":
            self._database(topology)
        self._budget(site)
        CfnOutput(self, "AlarmTopic", value=self._topic.ref)

    def _alarm(
        self,
        name: str,
        meaning: str,
        *,
        namespace: str,
        metric: str,
        dimension: tuple[str, str],
        above: bool,
        threshold: float,
        statistic: str = "Average",
        minutes: int = 5,
        period_s: int = MINUTE_S,
        missing: str = "breaching",
    ) -> None:
        cloudwatch.CfnAlarm(
            self,
            pascal(name.replace("_", "-")),
            alarm_name=f"kalshi-{name}",
            alarm_description=meaning,
            namespace=namespace,
            metric_name=metric,
            dimensions=[
                cloudwatch.CfnAlarm.DimensionProperty(name=dimension[0], value=dimension[1])
            ],
            comparison_operator="GreaterThanThreshold" if above else "LessThanThreshold",
            threshold=threshold,
            statistic=statistic,
            period=period_s,
            evaluation_periods=max(1, minutes * MINUTE_S // period_s),
            treat_missing_data=missing,
            alarm_actions=[self._topic.ref],
            ok_actions=[self._topic.ref],
        )

    def _metrics(self, topology: Topology) -> None:
        for metric in topology.metric:
            for host in topology.hosts_of(metric.role):
                self._own_metric(metric, host.name, topology.logs.metric_namespace)

    def _own_metric(self, metric: Metric, host: str, namespace: str) -> None:
        self._alarm(
            f"{host}-{metric.name}",
            f"{host}: {metric.meaning}",
            namespace=namespace,
            metric=metric.name,
            dimension=("Host", host),
            above=metric.alarm == "above",
            threshold=metric.threshold,
            statistic=metric.statistic,
            minutes=metric.minutes,
        )

    def _instances(self, instances: Mapping[str, str]) -> None:
        for host, instance in instances.items():
            self._alarm(
                f"{host}-status",
                f"{host}: AWS's own checks of the instance fail",
                namespace="AWS/EC2",
                metric="StatusCheckFailed",
                dimension=("InstanceId", instance),
                above=True,
                threshold=0,
                statistic="Maximum",
                minutes=3,
            )
            self._alarm(
                f"{host}-burst",
                f"{host}: above its baseline so long that the surplus is charged",
                namespace="AWS/EC2",
                metric="CPUSurplusCreditsCharged",
                dimension=("InstanceId", instance),
                above=True,
                threshold=0,
                statistic="Maximum",
                minutes=30,
                period_s=5 * MINUTE_S,
                missing="notBreaching",
            )

    def _database(self, topology: Topology) -> None:
        wanted = topology.production
        dimension = ("DBInstanceIdentifier", wanted.identifier)
        self._alarm(
            "production-storage",
            "production: less than a tenth of the storage is free",
            namespace="AWS/RDS",
            metric="FreeStorageSpace",
            dimension=dimension,
            above=False,
            threshold=wanted.storage.size_gib * GIB * RDS_FREE_SHARE,
            minutes=15,
            period_s=5 * MINUTE_S,
        )
        self._alarm(
            "production-cpu",
            "production: the processor is busy; merging will fall behind",
            namespace="AWS/RDS",
            metric="CPUUtilization",
            dimension=dimension,
            above=True,
            threshold=RDS_CPU_PERCENT,
            minutes=30,
            period_s=5 * MINUTE_S,
        )
        self._alarm(
            "production-burst",
            "production: CPU credits are used up; the instance is charged for surplus",
            namespace="AWS/RDS",
            metric="CPUSurplusCreditsCharged",
            dimension=dimension,
            above=True,
            threshold=0,
            statistic="Maximum",
            minutes=30,
            period_s=5 * MINUTE_S,
            missing="notBreaching",
        )

    def _budget(self, site: Site) -> None:
        def notify(
            kind: str, percent: float
        ) -> budgets.CfnBudget.NotificationWithSubscribersProperty:
            return budgets.CfnBudget.NotificationWithSubscribersProperty(
                notification=budgets.CfnBudget.NotificationProperty(
                    comparison_operator="GREATER_THAN",
                    notification_type=kind,
                    threshold=percent,
                    threshold_type="PERCENTAGE",
                ),
                subscribers=[
                    budgets.CfnBudget.SubscriberProperty(
                        address=site.alarm_email, subscription_type="EMAIL"
                    )
                ],
            )

        budgets.CfnBudget(
            self,
            "Budget",
            budget=budgets.CfnBudget.BudgetDataProperty(
                budget_name="kalshi-monthly",
                budget_type="COST",
                time_unit="MONTHLY",
                budget_limit=budgets.CfnBudget.SpendProperty(
                    amount=site.options.monthly_budget_usd, unit="USD"
                ),
            ),
            notifications_with_subscribers=[
                notify("ACTUAL", BUDGET_ACTUAL_PERCENT),
                notify("FORECASTED", BUDGET_FORECAST_PERCENT),
            ],
        )
